package layers

import (
	"regexp"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	layer := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}$`)
	container := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	names := []string{"", "a", "-a", ".", "a/b:c@d+e-f.g_h", "a b", "a\n", "é", "aé", strings.Repeat("x", 128),
		strings.Repeat("x", 129), strings.Repeat("x", 255), strings.Repeat("x", 256)}
	for c := range 256 {
		names = append(names, string([]byte{byte(c)}), string([]byte{'a', byte(c)}))
	}
	for _, n := range names {
		if got := isLayerName(n); got != layer.MatchString(n) {
			t.Errorf("layer %q: %v", n, got)
		}
		if got := isContainerName(n); got != container.MatchString(n) {
			t.Errorf("container %q: %v", n, got)
		}
	}
}
