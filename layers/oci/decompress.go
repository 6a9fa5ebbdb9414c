package oci

import (
	"bufio"
	"io"

	"github.com/layerfs/layerfs/internal/errs"
)

// Decompress returns what is in r, which may be compressed with gzip or zstd.
// close gives back what that needed, but not r.
func Decompress(r io.Reader) (plain io.Reader, close func(), err error) {
	in, err := open(r)
	if err != nil {
		return nil, nil, errs.New(errs.Of(err), "the stream %w", err)
	}
	return in.stream, in.close, nil
}

// open looks at how r begins and undoes its compression.
func open(r io.Reader) (*input, error) {
	b := bufio.NewReaderSize(r, 1<<20)
	in := &input{stream: b, close: func() {}}
	name, err := compression(b)
	if err != nil {
		return nil, err
	}
	if name == "" {
		return in, nil
	}
	return in, in.decompress(name)
}
