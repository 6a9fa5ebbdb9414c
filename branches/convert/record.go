package convert

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/records"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/whiteout"
)

// Record is a format record and where it lies.
type Record struct {
	NS   whiteout.Namespace // of the attribute, "" for the file .wh..wh.layerfs
	Text string
}

// Where says where the record lies, for messages.
func (r Record) Where() string {
	if r.NS == "" {
		return whiteout.FormatFile
	}
	return string(r.NS) + records.FormatAttr
}

// Records returns the format records of the branch at root; the first counts
// (whiteout.Recorded).
func Records(root int) (list []Record, err error) {
	for _, ns := range namespaces {
		v, err := sys.GetXattr(root, "", string(ns)+records.FormatAttr)
		switch {
		case err == nil:
			list = append(list, Record{ns, string(v)})
		case !lacks(err):
			return list, err
		}
	}
	fd, err := sys.OpenIn(root, whiteout.FormatFile, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err == unix.ENOENT || err == unix.ELOOP {
		return list, nil
	}
	if err != nil {
		return list, err
	}
	defer sys.Close(fd)
	var buf [64]byte
	n, err := sys.PRead(fd, buf[:], 0)
	if err == unix.EISDIR { // whiteout.StubDir
		return list, nil
	}
	return append(list, Record{"", string(buf[:n])}), err
}

// Recorded is what is known of the format of a branch.
type Recorded struct {
	Format whiteout.Format
	Known  bool
	// UnderWay: the branch is being converted to Format.
	UnderWay bool
}

// ReadRecord reads the format record of the branch at root.
func ReadRecord(root int) (r Recorded, err error) {
	list, err := Records(root)
	if err != nil || len(list) == 0 {
		return r, err
	}
	text, converting := strings.CutPrefix(list[0].Text, whiteout.Converting)
	r.UnderWay = converting
	r.Format, err = whiteout.ParseFormat(text)
	r.Known = err == nil
	return r, err
}

// begin records that root is being converted to the format to, where the
// record is that counts.
func begin(root int, to whiteout.Format) error {
	list, err := Records(root)
	if err != nil {
		return err
	}
	text := whiteout.Converting + to.String()
	if len(list) > 0 {
		return putRecord(root, Record{list[0].NS, text})
	}
	_, err = putAnywhere(root, to.NS, text)
	return err
}

// Finish records the format to and removes every other record.
func Finish(root int, to whiteout.Format) error {
	at, err := putAnywhere(root, to.NS, to.String())
	if err != nil {
		return err
	}
	list, err := Records(root)
	if err != nil {
		return err
	}
	for _, r := range list {
		switch {
		case r.NS == at:
			continue
		case r.NS == "":
			err = sys.KeepTimes(root, func() error { return sys.Unlink(root, whiteout.FormatFile) })
		default:
			err = sys.RemoveXattr(root, "", string(r.NS)+records.FormatAttr)
		}
		if err != nil {
			return err
		}
	}
	if err := sys.RemoveXattr(root, "", records.TrustedHint); err != nil && !lacks(err) {
		return err
	}
	return sys.SyncDir(root)
}

// putAnywhere records text in an attribute, or in the file where there are
// none, and returns where (Record.NS).
func putAnywhere(root int, ns whiteout.Namespace, text string) (whiteout.Namespace, error) {
	if putRecord(root, Record{ns, text}) == nil {
		return ns, nil
	}
	return "", putRecord(root, Record{"", text})
}

func putRecord(root int, r Record) error {
	if r.NS != "" {
		return sys.SetXattr(root, "", string(r.NS)+records.FormatAttr, []byte(r.Text), 0)
	}
	return sys.KeepTimes(root, func() error { return putFile(root, r.Text) })
}

// putFile writes .wh..wh.layerfs in one step.
func putFile(root int, text string) error {
	_ = sys.Unlink(root, tmpName)
	fd, err := sys.OpenIn(root, tmpName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0444)
	if err != nil {
		return err
	}
	if err = sys.PWriteAll(fd, []byte(text), 0); err == nil {
		err = sys.Fsync(fd)
	}
	sys.Close(fd)
	if err == nil {
		err = sys.Rename(root, tmpName, root, whiteout.FormatFile, 0)
	}
	if err != nil {
		_ = sys.Unlink(root, tmpName)
	}
	return err
}

// chooseFormat settles what the branch at root is to be written in. ns is ""
// for the namespace that it has, or the one that this user can use.
func chooseFormat(root int, path string, d whiteout.Dialect, ns whiteout.Namespace) (was Recorded, to whiteout.Format, err error) {
	to = whiteout.Format{Dialect: d, NS: ns}
	if was, err = ReadRecord(root); err != nil {
		class := errs.Corrupt
		if errno := unix.Errno(0); errors.As(err, &errno) { // it could not be read
			class = errs.Of(err)
		}
		return was, to, errs.New(class, "the format record of branch %s: %w", path, err)
	}
	trusted, err := takesXattr(root, whiteout.Trusted)
	if err == unix.EPERM {
		return was, to, errs.New(errs.Unsupported, "%s takes no names that start with %s: it lies in a union, or is immutable", path, whiteout.Prefix)
	}
	if err != nil {
		return was, to, errs.New(errs.Of(err), "branch %s cannot be written: %w", path, err)
	}
	if was.Known && was.Format.NS == whiteout.Trusted && !trusted {
		return was, to, errs.New(errs.Corrupt, "branch %s is written in %q, which this user cannot read: convert it as root", path, was.Format)
	}
	switch {
	case to.NS != "":
	case was.Known:
		to.NS = was.Format.NS
	case trusted:
		to.NS = whiteout.Trusted
	default:
		to.NS = whiteout.User
	}
	return was, to, probe(root, path, to)
}

// probe refuses a format that the file system of the branch cannot hold.
func probe(root int, path string, to whiteout.Format) error {
	if to.Dialect == whiteout.AUFS {
		return nil
	}
	takes, err := takesXattr(root, to.NS)
	if err == nil && !takes {
		return errs.New(errs.Unsupported, "the file system of %s takes no %s extended attributes of this user, which dialect %s needs: convert to aufs", path, to.NS, to.Dialect)
	}
	if err == nil && to.Dialect == whiteout.Overlay {
		if takes, err = takesDevices(root); err == nil && !takes {
			return errs.New(errs.Unsupported, "the file system of %s takes no whiteout devices, which dialect overlay needs: convert to xattr or aufs", path)
		}
	}
	if err != nil {
		return errs.New(errs.Of(err), "branch %s cannot be written: %w", path, err)
	}
	return nil
}

// takesXattr tries an attribute in ns on a file in the root of the branch.
func takesXattr(root int, ns whiteout.Namespace) (takes bool, err error) {
	err = withTemporary(root, unix.S_IFREG|0600, func() error {
		err := sys.SetXattr(root, tmpName, string(ns)+opaqueAttr, []byte("n"), 0)
		takes = err == nil
		if lacks(err) {
			return nil
		}
		return err
	})
	return takes, err
}

// takesDevices tries a whiteout device, and looks back at it.
func takesDevices(root int) (takes bool, err error) {
	err = withTemporary(root, unix.S_IFCHR, func() error {
		st, err := sys.StatAt(root, tmpName, 0)
		takes = err == nil && st.IsWhiteout()
		return err
	})
	if lacks(err) || err == unix.EINVAL {
		return false, nil
	}
	return takes, err
}

// withTemporary has fn look at a temporary file in the root of the branch.
func withTemporary(root int, mode uint32, fn func() error) error {
	return sys.KeepTimes(root, func() error {
		_ = sys.Unlink(root, tmpName)
		if err := sys.Mknod(root, tmpName, mode, 0); err != nil {
			return err
		}
		err := fn()
		if uerr := sys.Unlink(root, tmpName); err == nil {
			err = uerr
		}
		return err
	})
}
