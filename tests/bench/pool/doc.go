// Command pool compares thin devices with qcow2 (64 KiB clusters, served by
// qemu-nbd with the same cache mode): one client, fio, over unix sockets, in
// turn, in one run. It prints operations per second, medians of the rounds,
// and the ratio. What fio cannot do, snapshots, is timed with the programs
// that people would use, and for layerfs through the client's library too.
package main
