package fs

import (
	"fmt"
	"slices"
	"sync"
)

// troubles are the last things that went wrong with stubs, for those who see an
// EIO and no log.
type troubles struct {
	mu   sync.Mutex
	list []string
}

// manyTroubles is how many are kept.
const manyTroubles = 20

// trouble logs what is wrong with a stub or its pool, each message once.
func (f *FS) trouble(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	t := &f.troubles
	t.mu.Lock()
	known := slices.Contains(t.list, line)
	if !known {
		t.list = append(t.list, line)
		if len(t.list) > manyTroubles {
			t.list = t.list[1:]
		}
	}
	t.mu.Unlock()
	if !known {
		f.opts.Log.Print(line)
	}
}

func (t *troubles) all() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.list)
}
