// Package harness runs the layerfs program on real mounts for the tests.
//
// Everything here is black box: the program is the file that $LAYERFS_BIN
// names, or bin/layerfs, built when the tests start. What it does is judged by
// what any program sees in the mount and by what lies in the branches.
//
// Env is a directory of one test. Mount starts a daemon in it; at the end of
// the test it is unmounted, and the test fails if anything is left: a mount, a
// process, a temporary in the work directory, an open file that was deleted.
//
// What the machine lacks makes a test skip and say why; with
// LAYERFS_TEST_STRICT=1 it fails instead, so that `make test` cannot pass by
// skipping.
package harness
