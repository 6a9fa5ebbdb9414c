package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"github.com/layerfs/layerfs/internal/errs"
)

// Limits of what is read. No honest layer comes near them.
const (
	maxWindow   = 128 << 20 // of zstd, in memory
	maxTrailing = 64 << 20  // bytes behind the end mark
)

// input is the tar in a layer, which may be compressed.
type input struct {
	tar    *tar.Reader
	stream io.Reader
	close  func()
	last   [512]byte // the last block that was read
}

// compressions by the first bytes of a file.
var compressions = []struct{ magic, name string }{
	{"\x1f\x8b", "gzip"},
	{"\x28\xb5\x2f\xfd", "zstd"},
	{"BZh", "bzip2"},
	{"\xfd7zXZ\x00", "xz"},
}

func openInput(r io.Reader) (*input, error) {
	in, err := open(r)
	if err != nil {
		return nil, err
	}
	in.tar = tar.NewReader(in)
	return in, nil
}

// compression returns the name of what b is compressed with, "" for nothing.
func compression(b *bufio.Reader) (string, error) {
	head, err := b.Peek(6)
	if len(head) == 0 {
		if err != nil && err != io.EOF {
			return "", readError(err)
		}
		return "", errs.New(errs.Corrupt, "is empty: a tar was expected")
	}
	for _, c := range compressions {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return c.name, nil
		}
	}
	return "", nil
}

func (in *input) decompress(name string) error {
	switch name {
	case "gzip":
		z, err := gzip.NewReader(in.stream)
		if err != nil {
			return readError(err)
		}
		in.stream = z
	case "zstd":
		z, err := zstd.NewReader(in.stream, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return readError(err)
		}
		in.stream, in.close = z, z.Close
	default:
		return errs.New(errs.Unsupported, "is compressed with %s: gzip, zstd or nothing can be read", name)
	}
	return nil
}

// Read is what the tar reader reads by.
func (in *input) Read(p []byte) (int, error) {
	n, err := in.stream.Read(p)
	if keep := len(in.last); n >= keep {
		copy(in.last[:], p[n-keep:n])
	} else if n > 0 {
		copy(in.last[:], in.last[n:])
		copy(in.last[keep-n:], p[:n])
	}
	return n, err
}

// end makes sure that the tar has its end mark and the compressed stream its
// checksum: what was cut off between two entries looks whole otherwise.
func (in *input) end() error {
	if in.last != [512]byte{} {
		return errs.New(errs.Corrupt, "has no end mark: it was cut off")
	}
	n, err := io.CopyN(io.Discard, in.stream, maxTrailing)
	if err == io.EOF {
		return nil
	}
	if err != nil {
		return readError(err)
	}
	return errs.New(errs.Corrupt, "goes on behind its end mark for more than %d bytes", n)
}

// readError tells what is wrong with the input from what is wrong with its file.
func readError(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errs.New(errs.Of(err), "cannot be read: %w", err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
		return errs.New(errs.Corrupt, "was cut off: unexpected end of data")
	}
	return errs.New(errs.Corrupt, "is no tar, or a damaged one: %w", err)
}
