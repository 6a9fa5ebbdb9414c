// Package blockcopy tests files that were copied up by blocks: what a program
// sees of them is what it sees of any other file, whatever happens to the
// daemon, to the pool process, to the stubs, to the lowers.
//
// The exerciser of tests/data and the histories of tests/parity run on stubs
// with LAYERFS_TEST_MOUNT=copyup=block,copyup_threshold=1; so does TestDebianRoot,
// with 64K. Those of their tests that read an upper directly do not.
//
// LAYERFS_TEST_KILLS=N is how often TestDatabase kills, LAYERFS_TEST_CUTS=N how
// often TestPowerCut cuts the power, LAYERFS_TEST_DB=MiB how big the database is.
package blockcopy
