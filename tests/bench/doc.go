// Command bench compares layerfs with its peers on one machine, in one run,
// on a file system made fresh for it: the machines on which this runs are
// noisy, so only ratios taken side by side mean anything. See bench.sh.
package main
