// Package work carries errors out of pieces of a benchmark, which have no
// use for them but to end the run.
package work

import (
	"fmt"
	"os"
)

// failure is an error on its way to Main.
type failure struct{ error }

// Check ends the benchmark when err is one.
func Check(err error) {
	if err != nil {
		panic(failure{err})
	}
}

// Main runs a benchmark and ends the program with its error.
func Main(bench func() error) {
	if err := run(bench); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(bench func() error) (err error) {
	defer func() {
		if f, ok := recover().(failure); ok {
			err = f.error
		}
	}()
	return bench()
}
