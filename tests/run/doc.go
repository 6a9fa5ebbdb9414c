// Package run tests `layerfs run`: commands in root directories of their own,
// as root and as an ordinary user.
package run
