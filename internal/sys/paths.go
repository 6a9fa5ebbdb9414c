package sys

import "os"

// These are what package os does to the disk by path, each counted as a system call: see
// Step.

// MakeDirs is os.MkdirAll. Directories that are there are no step.
func MakeDirs(path string, mode os.FileMode) error {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return nil
	}
	return counted("mkdir", func() error { return os.MkdirAll(path, mode) })
}

// MakeDir is os.Mkdir.
func MakeDir(path string, mode os.FileMode) error {
	return counted("mkdir", func() error { return os.Mkdir(path, mode) })
}

// RemovePath is os.Remove.
func RemovePath(path string) error {
	return counted("remove", func() error { return os.Remove(path) })
}

// RenamePath is os.Rename.
func RenamePath(from, to string) error {
	return counted("rename", func() error { return os.Rename(from, to) })
}

// WriteFile is os.WriteFile.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	return counted("write", func() error { return os.WriteFile(path, data, mode) })
}

func counted(op string, fn func() error) error {
	if err := fault(op); err != nil {
		return err
	}
	return fn()
}
