// Package union runs the built program on real mounts, as its users do.
//
// The program is $LAYERFS_BIN, or is built once into a temporary directory.
// Each test has a directory of its own on a real file system and mounts in
// it; when it ends, the mount must go away, its daemon with it, and the work
// directory must be empty. What needs root says so and is skipped otherwise,
// unless LAYERFS_TEST_STRICT is set. The kernel's overlayfs is the oracle
// where both should agree.
package union
