package stub

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Attr is the attribute that makes a file a stub, without its namespace.
const Attr = "layerfs.stub"

// TimesAttr keeps the times of a stub that is being settled, whose inode has
// others meanwhile.
const TimesAttr = "layerfs.times"

// Size is the length of a stub's text. Nothing else depends on it: a file of
// this length in a branch that has no pool may be a stub that lost its own.
const Size = 512

// Text is the content of a stub.
func Text() []byte {
	text := `This is not the content of this file, only a stub of it.

layerfs has copied the file up by blocks: what was changed is in a layerfs
pool, the rest in a lower branch. The pool is in the directory
.wh..wh.layerfs/pool at the top of this branch, unless another was asked for.

To read the file, mount the branches with layerfs. To turn all stubs in this
branch into plain files, run

  layerfs settle DIRECTORY

on the top directory of this branch (or on the mountpoint).
`
	return append([]byte(text), []byte(strings.Repeat("\n", Size-len(text)))...)
}

// Private as a Record's pool is the one in the branch of the stub.
const Private = "private"

// Record says where the content of a stub is.
type Record struct {
	Pool   string // Private, or the UUID of a shared pool
	Device string // the name of the device
	Key    string // random, as in the record of the device
}

func (r Record) String() string { return fmt.Sprintf("1 %s %s %s", r.Pool, r.Key, r.Device) }

// Parse reads a record; ok is false for one that makes no sense.
func Parse(text string) (r Record, ok bool) {
	part := strings.SplitN(text, " ", 4)
	if len(part) != 4 || part[0] != "1" || part[1] == "" || len(part[2]) != keyLength || part[3] == "" {
		return r, false
	}
	return Record{part[1], part[3], part[2]}, true
}

const (
	keyLength = 32
	maxRecord = 512
)

// NewKey returns a random key, which is also what a new upper is called.
func NewKey() string {
	var b [keyLength / 2]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// DeviceName returns a name for the device of a file: no other has it, and
// people see in a listing which file it is.
func DeviceName(file string) string {
	const longest = 100
	file = strings.Map(func(c rune) rune {
		if c <= ' ' || c == '/' || c == 0x7f || c == '\uFFFD' {
			return '_'
		}
		return c
	}, file)
	if len(file) > longest {
		file = strings.ToValidUTF8(file[:longest], "")
	}
	return file + "-" + NewKey()[:16]
}

// Damaged is the error for an attribute that cannot be read as a record.
type Damaged struct{ Text string }

func (d *Damaged) Error() string { return fmt.Sprintf("its attribute %s is damaged: %q", Attr, d.Text) }

// Unwrap makes it EIO.
func (d *Damaged) Unwrap() error { return unix.EIO }

// Read returns the record of the file name in dirfd; ok is false when it is no stub.
func Read(dirfd int, name string) (r Record, ok bool, err error) {
	var buf [maxRecord]byte
	for _, ns := range [...]string{"trusted.", "user."} {
		n, err := sys.GetXattrInto(dirfd, name, ns+Attr, buf[:])
		if err != nil {
			if err == unix.ERANGE {
				return r, false, &Damaged{"(long)"}
			}
			continue // absent, or not for this user to see
		}
		if r, ok = Parse(string(buf[:n])); !ok {
			return r, false, &Damaged{string(buf[:n])}
		}
		return r, true, nil
	}
	return r, false, nil
}
