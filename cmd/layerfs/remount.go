package main

import "github.com/layerfs/layerfs/internal/fusedev"

// wantsRemount reports whether mount(8) calls its helper for `mount -o remount`.
func wantsRemount(options []string) bool {
	for _, o := range options {
		if contains(splitOptions(o), "remount") {
			return true
		}
	}
	return false
}

// remountFlags changes the flags of a mount (ro, noexec, ...). mount(8) gives
// all the options that are in force with those that it was asked for behind
// them. What is not a flag stays as it is.
func remountFlags(mountpoint string, options []string) error {
	var s settings
	for _, o := range options {
		for _, word := range splitOptions(o) {
			if opt, ok := flagOptions[word]; ok {
				if err := opt.apply(&s, ""); err != nil {
					return err
				}
			}
		}
	}
	path, err := absolute(mountpoint)
	if err != nil {
		return err
	}
	return fusedev.Remount(path, s.flags)
}
