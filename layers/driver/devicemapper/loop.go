package devicemapper

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/internal/sys"
)

// attachedLoop returns the loop device that a file has, "" for none.
func attachedLoop(path string) string {
	list, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range list {
		backing, err := os.ReadFile(f)
		if err == nil && strings.TrimSpace(string(backing)) == path {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return ""
}

// loopOf returns the loop device of a file, and makes one if it has none.
func loopOf(path string) (string, error) {
	if dev := attachedLoop(path); dev != "" {
		return dev, nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return sys.LoopAttach(int(f.Fd()), path)
}
