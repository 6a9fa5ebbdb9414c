package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/control"
)

// holders says which processes use one of the files of the mount: open, as
// program or mapped, as working or root directory. all adds a line for those
// files that nobody in sight holds. Only processes that this user may look at
// are found.
func holders(mountpoint string, files []fs.InUse, all bool) []string {
	if len(files) == 0 {
		return nil
	}
	dev, err := control.Dev(mountpoint)
	if err != nil {
		return nil
	}
	wanted := make(map[uint64]string, len(files))
	for _, f := range files {
		wanted[f.Ino] = f.Path
	}
	var out []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	self := fmt.Sprintf("/proc/%d", os.Getpid())
	for _, proc := range procs {
		if proc == self { // it ends in a moment
			continue
		}
		for _, path := range held(proc, dev, wanted) {
			out = append(out, fmt.Sprintf("%s has %s", processName(proc), path))
		}
	}
	sort.Strings(out)
	if len(out) == 0 && all {
		for _, f := range files[:min(len(files), 3)] {
			out = append(out, "somebody has "+f.Path)
		}
	}
	return out
}

// held lists which of the wanted files of the device a process holds.
func held(proc string, dev uint64, wanted map[uint64]string) []string {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	for _, dir := range []string{"/fd", "/map_files"} {
		entries, _ := os.ReadDir(proc + dir)
		for _, e := range entries {
			links = append(links, proc+dir+"/"+e.Name())
		}
	}
	found := map[string]bool{}
	for _, l := range links {
		var st unix.Statx_t
		// Only what the kernel knows: the mount may be waiting for us.
		if unix.Statx(unix.AT_FDCWD, l, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st) != nil {
			continue
		}
		if path, ok := wanted[st.Ino]; ok && unix.Mkdev(st.Dev_major, st.Dev_minor) == dev {
			found[path] = true
		}
	}
	out := make([]string, 0, len(found))
	for path := range found {
		out = append(out, path)
	}
	return out
}

// processName is like "1234 (vim)".
func processName(proc string) string {
	comm, _ := os.ReadFile(proc + "/comm")
	return filepath.Base(proc) + " (" + strings.TrimSpace(string(comm)) + ")"
}
