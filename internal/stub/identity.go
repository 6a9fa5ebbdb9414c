package stub

import (
	"encoding/hex"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/sys"
)

// Names in the directory .wh..wh.layerfs of an upper.
const (
	IDFile  = "id"
	PoolDir = "pool"
)

// Inode tells the inode name in dirfd from all others of its file system, those
// included that had its number before.
func Inode(dirfd int, name string) (string, error) {
	h, err := sys.Handle(dirfd, name)
	if err != nil {
		return "", err
	}
	if h != nil {
		return hex.EncodeToString(h), nil
	}
	st, err := sys.StatAt(dirfd, name, 0)
	return fmt.Sprintf("i%x", st.Ino), err
}

// Identity returns the random id of the upper whose directory .wh..wh.layerfs
// is dir and whose root is root, and makes one if there is none. An upper that
// was copied has the id of the one that it is a copy of, but another inode: it
// gets an id of its own.
func Identity(root, dir int) (string, error) {
	inode, err := Inode(root, "")
	if err != nil {
		return "", err
	}
	if id, of := readIdentity(dir); of == inode && len(id) == keyLength {
		return id, nil
	}
	id := NewKey()
	return id, writeFile(dir, IDFile, []byte(id+" "+inode+"\n"))
}

// PeekIdentity is Identity for those who must not change the upper; "" when
// it has none.
func PeekIdentity(dir int) string {
	id, _ := readIdentity(dir)
	return id
}

func readIdentity(dir int) (id, inode string) {
	fd, err := sys.OpenIn(dir, IDFile, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", ""
	}
	defer sys.Close(fd)
	var buf [512]byte
	n, err := sys.PRead(fd, buf[:], 0)
	if err != nil {
		return "", ""
	}
	id, inode, _ = strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
	return id, inode
}

// writeFile makes content the file name in dir, durably and in one step.
func writeFile(dir int, name string, content []byte) error {
	tmp := name + ".new"
	_ = sys.Unlink(dir, tmp)
	fd, err := sys.OpenIn(dir, tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0600)
	if err != nil {
		return err
	}
	err = sys.PWriteAll(fd, content, 0)
	if err == nil {
		err = sys.Fsync(fd)
	}
	sys.Close(fd)
	if err == nil {
		err = sys.Rename(dir, tmp, dir, name, 0)
	}
	if err != nil {
		_ = sys.Unlink(dir, tmp)
		return err
	}
	return sys.SyncDir(dir)
}
