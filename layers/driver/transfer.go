package driver

import (
	"io"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/layers/oci"
)

// Transfer writes what cmp finds as a layer and has apply read it: how the changes
// of one tree come into another in canonical form.
func Transfer(cmp branches.Comparison, warn func(string), apply func(layer io.Reader) error) error {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := oci.Diff(w, cmp, warn)
		w.CloseWithError(err)
		written <- err
	}()
	err := apply(r)
	r.CloseWithError(io.ErrClosedPipe)
	// Who failed first made the other fail; a reader's error has the writer's inside.
	if werr := <-written; werr != nil && werr != io.ErrClosedPipe {
		return werr
	}
	return err
}
