// Package pool tests pools and thin devices from outside: through the
// program, its processes and its ways in.
//
// TestKilled and TestPowerCut run writers in a process of their own, which
// say on a pipe what they are about to do and what was acknowledged. Then the
// writers and the pool's process are killed, or the file system below them
// loses its power (FS_IOC_SHUTDOWN), and everything that the pool shows
// afterwards must be something that it may show: what was flushed, or what
// was written since, of this very device. LAYERFS_TEST_CUTS says how often;
// the pool is the same from one time to the next.
package pool
