// Package tests holds the end-to-end tests of layerfs: the built program on
// real mounts, as root and as an ordinary user.
//
//   - union_read_test.go, union_write_test.go: union semantics by table, each
//     whiteout dialect, over few and many branches; the same work on a plain
//     directory is the judge of what a union must show.
//   - random_test.go: the same with random histories.
//   - files_test.go: what a copy-up keeps, inode numbers, hard links, special
//     files, reserved names and attributes.
//   - coherence_test.go: no stale byte, size, link count or time, ever.
//   - posix_test.go: go-fuse's conformance suite.
//   - dropin_test.go: the contract of fuse-overlayfs, a test per line.
//   - badinput_test.go: messages and exit codes.
//   - commands_test.go: umount, status, branches, trace, changes.
//   - debian_test.go, podman_test.go: real work.
package tests
