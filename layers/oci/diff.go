package oci

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/whiteout"
)

// opaqueName is the name that hides everything below its directory.
const opaqueName = whiteout.OpaqueFile

// xattrRecord is how PAX records of extended attributes begin.
const xattrRecord = "SCHILY.xattr."

// Diff writes the canonical layer of what cmp finds. warn is told what cannot
// be in a layer.
func Diff(out io.Writer, cmp branches.Comparison, warn func(string)) error {
	buffered := bufio.NewWriterSize(out, 1<<20)
	w := writer{tar: tar.NewWriter(buffered), warn: warn, buf: make([]byte, 256<<10)}
	cmp.DeletedFirst = true
	if err := cmp.Run(w.change); err != nil {
		return err
	}
	if err := w.tar.Close(); err != nil {
		return fmt.Errorf("writing the layer: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("writing the layer: %w", err)
	}
	return nil
}

type writer struct {
	tar     *tar.Writer
	emptied string // the last directory whose whiteouts one opaque mark stands for
	warn    func(string)
	buf     []byte
}

func (w *writer) change(c *branches.Difference) error {
	if c.Kind == branches.Deleted {
		dir, name := path.Split(c.Path)
		if path.Clean(dir) == w.emptied {
			return nil
		}
		return w.whiteout(dir, whiteout.Prefix+name)
	}
	if err := w.entry(c); err != nil {
		return errs.New(errs.Of(err), "%s: %w", c.Path, err)
	}
	if !c.Emptied {
		return nil
	}
	w.emptied = c.Path
	return w.whiteout(c.Path, opaqueName)
}

// whiteout writes an empty file that says something of the layers below.
func (w *writer) whiteout(dir, name string) error {
	return w.tar.WriteHeader(&tar.Header{
		Format: tar.FormatPAX, Typeflag: tar.TypeReg, Mode: 0644,
		Name: strings.TrimPrefix(path.Join(dir, name), "/"), ModTime: time.Unix(0, 0),
	})
}

func (w *writer) entry(c *branches.Difference) error {
	st := &c.Object.Stat
	h := &tar.Header{
		Format: tar.FormatPAX, Name: strings.TrimPrefix(c.Path, "/"),
		Mode: int64(st.Mode & 07777), Uid: int(st.UID), Gid: int(st.GID),
		ModTime: time.Unix(st.Mtime.Sec, int64(st.Mtime.Nsec)),
	}
	if c.Link != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, strings.TrimPrefix(c.Link, "/")
		return w.tar.WriteHeader(h)
	}
	switch st.Type() {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, int64(st.Size)
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		if h.Name += "/"; h.Name == "/" {
			h.Name = "./"
		}
	case unix.S_IFLNK:
		target, err := c.Object.Readlink()
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Type() == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(st.Rdev>>8&0xfff), int64(st.Rdev&0xff|st.Rdev>>12&^uint32(0xff))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return w.skipped(c)
	}
	if err := setXattrs(h, c.Object); err != nil {
		return err
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return err
	}
	if h.Size > 0 {
		return w.content(c.Object, h.Size)
	}
	return nil
}

// skipped leaves out what no tar can hold. What it has replaced is gone nonetheless.
func (w *writer) skipped(c *branches.Difference) error {
	w.warn(c.Path + ": a socket cannot be in a layer, left out")
	if c.Kind != branches.Changed {
		return nil
	}
	dir, name := path.Split(c.Path)
	return w.whiteout(dir, whiteout.Prefix+name)
}

// setXattrs enters the extended attributes into h. The characters that a
// record's name cannot have are escaped as GNU tar does.
func setXattrs(h *tar.Header, o *branches.Object) error {
	list, err := o.Xattrs()
	if err != nil || len(list) == 0 {
		return err
	}
	h.PAXRecords = make(map[string]string, len(list))
	for _, x := range list {
		h.PAXRecords[xattrRecord+escaper.Replace(x.Name)] = string(x.Value)
	}
	return nil
}

var (
	escaper   = strings.NewReplacer("%", "%25", "=", "%3D")
	unescaper = strings.NewReplacer("%25", "%", "%3D", "=")
)

func (w *writer) content(o *branches.Object, size int64) error {
	f, err := o.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{w.tar}, struct{ io.Reader }{io.NewSectionReader(f, 0, size)}, w.buf)
	if err == nil && n < size {
		err = errs.New(errs.Failed, "became shorter while it was read: repeat it when nobody makes changes")
	}
	return err
}
