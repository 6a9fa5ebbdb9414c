package fs

import "sync"

// dirt notes which parts of a file are written while a settle copies it.
type dirt struct {
	mu    sync.Mutex
	on    bool
	every bool           // the whole file is to be copied again
	dirty map[int64]bool // chunks of watchChunk bytes that were written
}

const watchChunk = 1 << 20

func (w *dirt) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on, w.every, w.dirty = true, false, map[int64]bool{}
}

// take returns what was written since start or the last take.
func (w *dirt) take() (chunks []int64, every bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.dirty {
		chunks = append(chunks, c)
	}
	every = w.every
	w.every, w.dirty = false, map[int64]bool{}
	return chunks, every
}

func (w *dirt) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on, w.dirty = false, nil
}

func (w *dirt) changed(off, length int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.on || length <= 0 {
		return
	}
	for c := off / watchChunk; c <= (off+length-1)/watchChunk; c++ {
		w.dirty[c] = true
	}
}

func (w *dirt) all() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.every = w.every || w.on
}
