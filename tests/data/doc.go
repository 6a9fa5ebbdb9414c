// Package data looks for wrong bytes and wrong trees under random load.
//
// TestExerciser does to one file everything that can be done to one, through
// many handles and mappings at once, and compares each byte with an array in
// memory, as fsx does: in the upper, after a copy-up, and across the copy-up
// again and again, with handles and mappings of the lower file that stay open.
// fsx_test.go drives, fsxops_test.go has the operations.
//
// TestStressTree has processes change a shared tree at random, as fsstress
// does. The judge is the disk: after the unmount the branches are merged by
// the rules on disk as merge_test.go knows them, written without a look at the
// code under test, and as root by kernel overlayfs; what the mount has shown,
// these two, and what a new mount shows must be the same. Then the upper
// becomes a lower and it begins again, so that redirects meet redirects.
//
// What they have found is kept small in redirect_test.go and race_test.go.
//
// LAYERFS_TEST_OPS=1000000 is the long form of both, LAYERFS_TEST_SEED=N
// repeats one seed.
package data
