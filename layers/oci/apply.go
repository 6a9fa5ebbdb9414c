package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// stageDir is where files lie, in the branch, until they are complete.
const stageDir = whiteout.Prefix + ".wh.layerfs.apply"

// Options of Apply.
type Options struct {
	Dialect string       // of whiteouts: "auto", "aufs", "overlay" or "xattr"
	Whole   bool         // the directory is the whole tree, not a branch: what is deleted just goes
	Warn    func(string) // told what could not be done and is left out
}

// Apply unpacks the layer in, a tar that may be compressed, into the branch
// directory dir. See the package comment for what it takes. When it fails, what
// came before the entry at fault is there.
func Apply(in io.Reader, dir string, o Options) error {
	root, err := sys.OpenRoot(dir)
	if err != nil {
		return errs.New(errs.Of(err), "directory %s: %w", dir, err)
	}
	defer sys.Close(root)
	a := &applier{root: root, whole: o.Whole, warn: o.Warn, owned: true, buf: make([]byte, 1<<20), pseudo: map[string]string{}}
	if err := a.begin(o.Dialect); err != nil {
		return errs.New(errs.Of(err), "directory %s: %w", dir, err)
	}
	defer sys.Close(a.stage)
	err = a.unpack(in)
	// Also after a failure: until then directories are closed to others.
	return errors.Join(err, a.finish())
}

func (a *applier) unpack(in io.Reader) error {
	src, err := openInput(in)
	if err != nil {
		return errs.New(errs.Of(err), "the layer %w", err)
	}
	defer src.close()
	return a.entries(src)
}

// applier is one layer on its way into one branch.
type applier struct {
	root, stage int
	format      whiteout.Format
	whole       bool // nothing is recorded of what is deleted
	warn        func(string)
	top         *node             // the root
	next        int               // number of the next temporary
	pseudo      map[string]string // temporaries by the AUFS pseudo-link that they are
	owned       bool              // every owner could be set
	buf         []byte

	// The directory of the last entry, which is that of the next more often than not.
	lastPath string
	last     *place
}

// begin opens the stage and settles the dialect.
func (a *applier) begin(dialect string) error {
	st, err := sys.FStat(a.root)
	if err != nil {
		return err
	}
	a.top = &node{made: true, dir: true, kept: &st}
	if err := sys.Mkdir(a.root, stageDir, 0700); err != nil && err != unix.EEXIST {
		return err
	}
	if a.stage, err = sys.OpenIn(a.root, stageDir, unix.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	if err := sys.Flock(a.stage); err != nil {
		sys.Close(a.stage)
		return errs.New(errs.Busy, "another layer is being applied to it")
	}
	if err := a.prepare(dialect); err != nil {
		sys.Close(a.stage)
		return errors.Join(err, a.finish())
	}
	return nil
}

func (a *applier) prepare(dialect string) (err error) {
	// What a killed predecessor has left, and a default ACL of the branch,
	// which is not for what is unpacked.
	left, err := sys.ReadDir(a.stage)
	for _, e := range left {
		err = errors.Join(err, sys.RemoveAll(a.stage, e.Name))
	}
	if err != nil {
		return err
	}
	_ = sys.RemoveXattr(a.stage, "", "system.posix_acl_default")
	if a.whole {
		return nil
	}
	if a.format, err = chooseFormat(a.root, a.stage, dialect); err != nil {
		return err
	}
	return a.marksOf(a.root, a.top)
}

func (a *applier) entries(src *input) error {
	for {
		h, err := src.tar.Next()
		if err == io.EOF {
			if err := src.end(); err != nil {
				return errs.New(errs.Of(err), "the layer %w", err)
			}
			return nil
		}
		if err != nil {
			return errs.New(errs.Of(readError(err)), "the layer %w", readError(err))
		}
		if err := a.entry(h, src.tar); err != nil {
			return errs.New(classOf(err), "entry %q: %w", h.Name, err)
		}
	}
}

// classOf is the class of an entry's failure. What is missing or in the way
// is so because of the layer, not because of what the user named.
func classOf(err error) errs.Class {
	switch c := errs.Of(err); c {
	case errs.NotFound:
		return errs.Failed
	default:
		return c
	}
}

func (a *applier) entry(h *tar.Header, data io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return errs.New(errs.Corrupt, "owner %d:%d is not possible", h.Uid, h.Gid)
	}
	path, err := components(h.Name)
	if err != nil {
		return err
	}
	k, target, err := classify(path)
	switch {
	case err != nil || k == foreign:
		return err
	case k == pseudo:
		return a.pseudoLink(target[1], h, data)
	case len(target) == 0 && k == ordinary:
		if h.Typeflag != tar.TypeDir {
			return errs.New(errs.Corrupt, "the root is a directory and stays one")
		}
		a.top.entry, a.top.kept = h, nil
		return nil
	case k == opaque:
		p, err := a.directory(target, h)
		if err != nil {
			return err
		}
		return a.hideBelow(p)
	}
	name := target[len(target)-1]
	p, err := a.directory(target[:len(target)-1], h)
	if err != nil {
		return err
	}
	if k == deletion || h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 {
		return a.delete(p, name)
	}
	return a.make(p, name, h, data)
}

// make puts what h describes at name in p.
func (a *applier) make(p *place, name string, h *tar.Header, data io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return a.makeDir(p, name, h)
	}
	tmp := a.temporary()
	err := a.build(tmp, h, data)
	if err == errSkipped {
		p.child(name).skipped = true
		return nil
	}
	if err != nil {
		return err
	}
	return a.replace(p, name, tmp, false)
}

// errSkipped says that an entry is left out, and why is told already.
var errSkipped = errors.New("left out")

// build makes what h describes, all but a directory, under a temporary name.
func (a *applier) build(tmp string, h *tar.Header, data io.Reader) (err error) {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		err = a.buildFile(tmp, h, data)
	case tar.TypeLink:
		return a.buildLink(tmp, h)
	case tar.TypeSymlink:
		if h.Linkname == "" || len(h.Linkname) >= unix.PathMax {
			return errs.New(errs.Corrupt, "a symbolic link of %d bytes is not possible", len(h.Linkname))
		}
		err = sys.Symlink(h.Linkname, a.stage, tmp)
	case tar.TypeFifo:
		err = sys.Mknod(a.stage, tmp, unix.S_IFIFO|0600, 0)
	case tar.TypeChar, tar.TypeBlock:
		err = a.buildDevice(tmp, h)
	default:
		return errs.New(errs.Corrupt, "entries of type %q are not known", h.Typeflag)
	}
	if err != nil {
		return err
	}
	return a.setAttributes(a.stage, tmp, h)
}

func (a *applier) buildDevice(tmp string, h *tar.Header) error {
	if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
		return errs.New(errs.Corrupt, "device %d:%d is not possible", h.Devmajor, h.Devminor)
	}
	typ := uint32(unix.S_IFCHR)
	if h.Typeflag == tar.TypeBlock {
		typ = unix.S_IFBLK
	}
	minor := uint32(h.Devminor)
	err := sys.Mknod(a.stage, tmp, typ|0600, minor&0xff|uint32(h.Devmajor)<<8|minor&^0xff<<12)
	if err == unix.EPERM {
		a.warn(fmt.Sprintf("%s: device left out: this user cannot make it", h.Name))
		return errSkipped
	}
	return err
}

// buildLink makes another name of a file that is there already.
func (a *applier) buildLink(tmp string, h *tar.Header) error {
	path, err := components(h.Linkname)
	if err != nil {
		return errs.New(errs.Of(err), "hard link to %q: %w", h.Linkname, err)
	}
	missing := errs.New(errs.Corrupt, "hard link to %q, which is not there", h.Linkname)
	k, _, err := classify(path)
	if k == pseudo && a.pseudo[path[1]] != "" {
		return sys.Link(a.stage, a.pseudo[path[1]], a.stage, tmp)
	}
	if k != ordinary || err != nil || len(path) == 0 {
		return missing
	}
	if n := a.top.find(path); n != nil && n.skipped {
		a.warn(h.Name + ": hard link left out: so was what it is a link to")
		return errSkipped
	}
	fd, err := sys.OpenDir(a.root, strings.Join(append([]string{"."}, path[:len(path)-1]...), "/"))
	if err != nil {
		return missing
	}
	defer sys.Close(fd)
	name := path[len(path)-1]
	st, err := sys.StatAt(fd, name, 0)
	if err != nil || st.IsDir() {
		return missing
	}
	m, err := whiteout.ReadMarks(fd, ".")
	if err != nil {
		return err
	}
	if is, err := whiteout.IsFile(fd, name, &st, m.XattrWhiteouts); is || err != nil {
		return missing
	}
	return sys.Link(fd, name, a.stage, tmp)
}

// pseudoLink keeps a file of .wh..wh.plnk for the hard links that refer to it.
func (a *applier) pseudoLink(name string, h *tar.Header, data io.Reader) error {
	if h.Typeflag == tar.TypeDir {
		return nil
	}
	tmp := a.temporary()
	err := a.build(tmp, h, data)
	switch err {
	case nil:
		a.pseudo[name] = tmp
	case errSkipped:
		err = nil
	}
	return err
}

func (a *applier) temporary() string {
	a.next++
	return fmt.Sprintf("%x", a.next)
}

// euid is who unpacks.
var euid = os.Geteuid()
