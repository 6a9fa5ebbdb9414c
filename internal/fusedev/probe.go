package fusedev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	initFlags2  = 1 << 30        // FUSE_INIT_EXT: Flags2 counts
	minRequest  = 8192           // FUSE_MIN_READ_BUFFER
	initPages   = 128 << 10      // some MaxWrite
	passthrough = 1 << (37 - 32) // fuse.CAP_PASSTHROUGH in Flags2
)

// Probe mounts an empty file system on the directory mountpoint and unmounts
// it at once. err says why that is not possible; noPassthrough why reads and
// writes cannot be passed through to file, nil when they can.
func Probe(mountpoint string, file int) (noPassthrough, err error) {
	c, err := Mount(MountConfig{Mountpoint: mountpoint, FsName: "layerfs-probe", Subtype: "layerfs"})
	if err != nil {
		return nil, err
	}
	noPassthrough = c.tryPassthrough(file)
	c.Close() // before the unmount: nobody would answer what that may ask
	return noPassthrough, Unmount(mountpoint, true)
}

// tryPassthrough answers the kernel's first request and asks for a backing file.
func (c *Conn) tryPassthrough(file int) error {
	msg := make([]byte, minRequest)
	n, err := unix.Read(c.fd, msg)
	if err != nil || n < headerSize || opcode(msg) != opInit {
		return fmt.Errorf("no request arrives: %w", err)
	}
	in := parseInit(msg[:n])
	if in.Flags64()&fuse.CAP_PASSTHROUGH == 0 {
		return errors.New("the kernel offers none (Linux 6.9)")
	}
	if err := c.write(initAnswer(&in)); err != nil {
		return fmt.Errorf("answering the kernel: %w", err)
	}
	_, err = c.OpenBacking(file)
	switch err {
	case nil:
		return nil
	case unix.EPERM:
		return errors.New("it takes CAP_SYS_ADMIN outside any user namespace")
	}
	return fmt.Errorf("the kernel takes no backing file: %w", err)
}

// initAnswer accepts nothing but passthrough.
func initAnswer(in *fuse.InitIn) []byte {
	out := fuse.InitOut{
		Major: in.Major, Minor: in.Minor, Flags: initFlags2, Flags2: passthrough,
		MaxWrite: initPages, MaxStackDepth: 1,
	}
	body := unsafe.Slice((*byte)(unsafe.Pointer(&out)), unsafe.Sizeof(out))
	msg := make([]byte, outHeaderSize, outHeaderSize+len(body))
	binary.NativeEndian.PutUint32(msg, uint32(outHeaderSize+len(body)))
	binary.NativeEndian.PutUint64(msg[8:], in.Unique)
	return append(msg, body...)
}
