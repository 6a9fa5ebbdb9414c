package sys

import (
	"fmt"
	"os"
)

// InUserNamespace reports whether this process lives in another user
// namespace than the first, where trusted. attributes do not exist.
func InUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	var inner, outer, n uint64
	_, err = fmt.Sscan(string(data), &inner, &outer, &n)
	return err == nil && !(inner == 0 && outer == 0 && n == 1<<32-1)
}
