package main

import (
	"log"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/fs"
)

func main() {
	syscall.Umask(0)
	cfg := branches.Config{WorkDir: os.Args[3], Mountpoint: os.Args[4], Dialect: os.Getenv("WH")}
	if os.Args[2] != "" {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: os.Args[2], Mode: branches.RW})
	}
	for _, l := range strings.Split(os.Args[1], ":") {
		cfg.Branches = append(cfg.Branches, branches.Spec{Path: l, Mode: branches.RO})
	}
	s, err := branches.Open(cfg)
	if err != nil {
		log.Fatal(err)
	}
	f, err := fs.New(s, fs.Options{Timeout: 24 * time.Hour * 365, RedirectDir: true})
	if err != nil {
		log.Fatal(err)
	}
	o := f.FuseOptions()
	o.DirectMount = true
	o.DirectMountFlags = 1 << 24
	o.AllowOther = true
	o.Options = []string{"default_permissions"}
	o.Debug = os.Getenv("DBG") != ""
	srv, err := fuse.NewServer(f, os.Args[4], o)
	if err != nil {
		log.Fatal(err)
	}
	srv.Serve()
	f.Close()
}
