// Package resources measures what the daemon takes and gives back: memory per
// inode, descriptors per open file, and what happens when there are no more.
//
// The figures are those of /proc/PID of the daemon. Memory goes back with a
// delay, first the kernel's FORGETs, then Go's collector and scavenger, so the
// tests wait for it, for long if need be, and judge no time.
//
// LAYERFS_TEST_FULL=1 is the full size: a million files, 262,144 directories,
// more mapped files than the daemon may have descriptors. stress.sh is slow
// and run by hand: the file system stressors of stress-ng in a mount and on the
// same file system without it.
package resources
