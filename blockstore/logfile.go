package blockstore

import (
	"bytes"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// logFile is the newest of badger's logs, seen from outside. Badger writes
// it through a map of a sparse file, which has two consequences that prepare
// does away with: a full disk is a SIGBUS, and syncing a page that was never
// on the disk costs the host's file system a transaction of its own. So the
// log gets its blocks when it appears, and a stretch ahead of its end is
// written with zeros, which is what it reads as anyway.
//
// Nobody writes the log during prepare: badger writes it only in commits.
type logFile struct {
	path  string
	since int64 // bytes committed since the last look
	ahead int64 // bytes until the next
}

// logAhead is how much of the log is written beforehand, in bytes. A process
// that commits little never needs any of it.
const logAhead = 1 << 20

var logZeros [logAhead]byte

// prepare is called before a commit of size bytes to the logs in dir, whose
// length is full. What it cannot do is left undone: it is for speed, and for
// room to be right.
func (l *logFile) prepare(dir string, full, size int64) {
	l.since += size
	if l.path != "" && l.since < l.ahead {
		return
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil || len(names) == 0 {
		return
	}
	newest := names[len(names)-1]
	f, err := os.OpenFile(newest, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	fd := int(f.Fd())
	l.since, l.ahead = 0, logAhead/4
	if newest != l.path {
		if sys.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, full) == nil {
			l.path = newest
		}
		return
	}
	fillAhead(f, full)
}

// fillAhead writes zeros behind what was ever written of the log, if they
// are needed soon and zeros are what is there.
func fillAhead(f *os.File, full int64) {
	fd := int(f.Fd())
	end, err := sys.Seek(fd, 0, unix.SEEK_HOLE)
	if err != nil {
		return
	}
	n := min(logAhead, full-end)
	if n <= 0 || used(f, end) < end-logAhead/2 {
		return
	}
	have := make([]byte, n)
	if k, err := f.ReadAt(have, end); err != nil || int64(k) != n || !bytes.Equal(have, logZeros[:n]) {
		return
	}
	if sys.PWriteAll(fd, logZeros[:n], end) == nil {
		_ = sys.Fdatasync(fd)
	}
}

// used finds the end of what is not zero before end, looking back no further
// than it matters.
func used(f *os.File, end int64) int64 {
	n := min(end, logAhead)
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, end-n); err != nil {
		return end
	}
	return end - n + int64(len(bytes.TrimRight(buf, "\x00")))
}
