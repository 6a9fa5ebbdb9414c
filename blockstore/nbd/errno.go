package nbd

import (
	"syscall"

	"github.com/layerfs/layerfs/internal/errs"
)

// refusal is an error that a request earned by itself, before the export
// saw it.
type refusal struct {
	code uint32
	text string
}

func (r *refusal) Error() string { return r.text }

// errorCode returns the NBD error value for err, as qemu's
// system_errno_to_nbd_errno does, but EIO instead of EINVAL for what has no
// value of its own: such an error is the store's, not the client's.
func errorCode(err error) uint32 {
	if r, ok := err.(*refusal); ok {
		return r.code
	}
	if errs.Of(err) == errs.NoSpace {
		return nbdENOSPC
	}
	switch errs.Errno(err) {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return nbdEPERM
	case syscall.ENOMEM:
		return nbdENOMEM
	case syscall.EINVAL:
		return nbdEINVAL
	case syscall.EFBIG: // EDQUOT is of the class NoSpace already
		return nbdENOSPC
	case syscall.EOVERFLOW:
		return nbdEOVERFLOW
	case syscall.EOPNOTSUPP:
		return nbdENOTSUP
	case syscall.ESHUTDOWN:
		return nbdESHUTDOWN
	}
	return nbdEIO
}

// openRefusal returns the reply type for an export that cannot be opened.
// ERR_UNSUP is none of them: clients take it for "no GO here" and try again
// with EXPORT_NAME, which cannot tell them why it fails.
func openRefusal(err error) uint32 {
	switch errs.Of(err) {
	case errs.Busy:
		return repErrPolicy
	case errs.Unsupported:
		return repErrPlatform
	}
	return repErrUnknown
}
