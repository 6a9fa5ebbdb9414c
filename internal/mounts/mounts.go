// Package mounts reads the kernel's table of mounts.
package mounts

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one line of a mountinfo.
type Mount struct {
	ID      int
	Dev     uint64 // of the file system
	Root    string // what of the file system is seen: "/" for all
	Point   string
	Flags   string // of the mount: "rw,nosuid,…"
	Type    string
	Source  string
	Options string // of the file system, as the kernel escapes them
}

// Table returns the mounts of this process's namespace; a mount that covers
// another comes after it.
func Table() ([]Mount, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	return Parse(string(data)), err
}

// On returns the topmost mount on the directory point, which is absolute and
// without symbolic links; ok is false when nothing is mounted there.
func On(point string) (m Mount, ok bool, err error) {
	table, err := Table()
	for _, e := range table {
		if e.Point == point {
			m, ok = e, true
		}
	}
	return m, ok, err
}

// Parse reads the text of a mountinfo; lines that are none are left out.
func Parse(mountinfo string) []Mount {
	var table []Mount
	for _, line := range strings.Split(mountinfo, "\n") {
		before, after, _ := strings.Cut(line, " - ")
		front, back := strings.Fields(before), strings.Fields(after)
		if len(front) < 6 || len(back) < 3 {
			continue
		}
		id, _ := strconv.Atoi(front[0])
		table = append(table, Mount{
			ID: id, Dev: device(front[2]), Root: unescape(front[3]), Point: unescape(front[4]), Flags: front[5],
			Type: back[0], Source: unescape(back[1]), Options: back[2],
		})
	}
	return table
}

func device(s string) uint64 {
	major, minor, _ := strings.Cut(s, ":")
	a, _ := strconv.ParseUint(major, 10, 32)
	b, _ := strconv.ParseUint(minor, 10, 32)
	return unix.Mkdev(uint32(a), uint32(b))
}

// unescape undoes mangle_path and seq_escape of the kernel: octal after a backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
