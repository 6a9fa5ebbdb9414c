package main

import (
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

func TestAll(t *testing.T) {
	for name, fn := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			d, _ := os.MkdirTemp("/var/tmp", "px")
			defer os.RemoveAll(d)
			for _, x := range []string{"l", "u", "w", "m"} {
				os.Mkdir(d+"/"+x, 0755)
			}
			c := exec.Command("/tmp/mini/mini", d+"/l", d+"/u", d+"/w", d+"/m")
			c.Stderr = os.Stderr
			c.Start()
			time.Sleep(100 * time.Millisecond)
			defer c.Wait()
			defer exec.Command("umount", "-l", d+"/m").Run()
			fn(t, d+"/m")
		})
	}
}
