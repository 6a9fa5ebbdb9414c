// Package linkrec reads and writes the records that keep the names of one
// lower file together when it is copied up by one of them: which lower file a
// copy stands for, and how many links it shows.
package linkrec

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// Where the records are, behind the xattr namespace of the upper. Part of the
// on-disk format: never change.
const (
	Attr   = "layerfs.link"  // on a copy: its record
	Marked = "layerfs.links" // on the root of an upper: some files in it have records
)

const (
	maxHandle = 100                // bytes of a file handle that make a key
	maxKey    = 1 + 2*maxHandle    // a letter and the bytes in hex
	digits    = "0123456789abcdef" // of a key
)

// Key names a lower inode by its file handle, which survives reboots and other
// branch orders; "" when there is no handle or it is too long.
func Key(handle []byte) string {
	if handle == nil || len(handle) > maxHandle {
		return ""
	}
	return "h" + hex.EncodeToString(handle)
}

// Record says of a copy which lower file it stands for and how many links it shows.
type Record struct {
	Key string
	N   int32
	// Absolute: N links are shown, else N more than are on disk.
	Absolute bool
}

func (r Record) String() string {
	if r.Absolute {
		return fmt.Sprintf("%s =%d", r.Key, r.N)
	}
	return fmt.Sprintf("%s %d", r.Key, r.N)
}

// Parse reads a record; one that makes no sense is none.
func Parse(text string) (r Record, ok bool) {
	key, number, ok := strings.Cut(text, " ")
	if !ok || len(key) < 2 || len(key) > maxKey || key[0] != 'h' && key[0] != 'i' || strings.Trim(key[1:], digits) != "" {
		return r, false
	}
	r.Key = key
	number, r.Absolute = strings.CutPrefix(number, "=")
	n, err := strconv.ParseInt(number, 10, 32)
	r.N = int32(n)
	return r, err == nil
}
