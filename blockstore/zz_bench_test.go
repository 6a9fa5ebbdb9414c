package blockstore_test

import (
	"testing"
	"path/filepath"
	"time"
	"os"

	"github.com/layerfs/layerfs/blockstore"
)

func TestZZ(t *testing.T) {
	dir := filepath.Join("/var/tmp", "zzpool")
	os.RemoveAll(dir)
	defer os.RemoveAll(dir)
	if err := blockstore.Create(dir, blockstore.Options{DataSize: 20 << 30}); err != nil { t.Fatal(err) }
	p, _ := blockstore.Open(dir)
	h := newHost(p)
	p.CreateDevice(blockstore.NewDevice{Name: "a", Size: 4 << 30})
	v, _ := h.volume("a")
	buf := make([]byte, 65536)
	for r := range 4 {
		s := time.Now()
		for i := range 4096 {
			if _, err := v.WriteAt(buf, int64(r*4096+i)*65536); err != nil { t.Fatal(err) }
		}
		t.Log("64K writes/s", 4096/time.Since(s).Seconds())
		s = time.Now()
		v.Flush()
		t.Log("flush", time.Since(s))
	}
	s := time.Now()
	for i := range 2000 {
		v.WriteAt(buf[:4096], int64(i)*65536)
		v.Flush()
	}
	t.Log("mapped 4K + flush /s", 2000/time.Since(s).Seconds())
	v2 := v
	_ = v2
	p.CreateDevice(blockstore.NewDevice{Name: "b", Size: 4 << 30})
	w, _ := h.volume("b")
	s = time.Now()
	for i := range 2000 {
		w.WriteAt(buf[:4096], int64(i*7919%60000)*65536)
		w.Flush()
	}
	t.Log("first 4K + flush /s", 2000/time.Since(s).Seconds())
	h.closeAll()
	p.Close()
}
