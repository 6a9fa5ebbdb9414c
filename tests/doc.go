// Package tests holds the end-to-end tests of layerfs: the built program on
// real mounts, as root and as an ordinary user.
//
//   - union_read_test.go: every dialect in the lowers, by table, over few and
//     many branches.
//   - random_test.go: named and random histories in every dialect; the same
//     work on a plain directory is the judge of what a union must show.
//   - files_test.go: what a copy-up keeps, inode numbers, special files,
//     read-only mounts, layerfs on layerfs, / as a lower.
//   - coherence_test.go: no stale byte, size, link count or time, ever.
//   - dropin_test.go: the contract of fuse-overlayfs, a test per line.
//   - badinput_test.go: messages and exit codes.
//   - commands_test.go: umount, status, branches, trace, changes.
//   - debian_test.go: real work in a Debian root, against kernel overlay.
//   - union: more of the same kind with a harness of its own, and go-fuse's
//     conformance suite.
//   - kernel: the kernel's overlay as a backend; run: `layerfs run`.
//   - demo, bench, podman: what `make demo`, `make bench` and `make
//     test-podman` run.
//
// LAYERFS_TEST_SEEDS=N tries N random histories instead of a few.
package tests
