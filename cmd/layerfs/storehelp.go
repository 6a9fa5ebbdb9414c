package main

func init() {
	for name, text := range storeHelp {
		commandHelp[name] = text
	}
}

const storeOptionsHelp = `
  --root DIR            the store; /var/lib/layerfs for root, else $XDG_DATA_HOME/layerfs
  --driver NAME         auto, overlay (overlay2), btrfs, union (aufs), vfs, thin, devicemapper;
                        a store keeps its driver
  --storage-opt K=V     Docker's overlay2.*, btrfs.* and dm.* options
`

// storeHelp is what the commands on stores print for --help.
var storeHelp = map[string]string{
	"layer": `Usage: layerfs layer import|import-image|ls|diff|rm ...

Layers are directory trees that stand on each other and never change. They are
kept in a store, by the best driver that the machine has.

Example:
  layerfs layer import debian debian.tar
  layerfs layer ls
`,
	"layer import": `Usage: layerfs layer import NAME FILE.tar

Makes a layer of the tar of a root file system, and prints its id. "-" is standard
input; gzip and zstd are understood.
` + storeOptionsHelp + `
Example:
  mmdebstrap bookworm | layerfs layer import debian -
`,
	"layer import-image": `Usage: layerfs layer import-image [--name NAME] FILE

Makes layers of the images in FILE, which docker save, podman save, skopeo copy
or an OCI layout tar has made. The topmost layer of each gets the image's names,
which are printed. Layers that the store has already are shared.
` + storeOptionsHelp + `
Example:
  docker save busybox | gzip > busybox.tar.gz
  layerfs layer import-image busybox.tar.gz
`,
	"layer ls": `Usage: layerfs layer ls [--json]

Lists layers, parents first. SIZE is what a layer adds to its parent, on disk.
` + storeOptionsHelp + `
Example:
  layerfs layer ls
`,
	"layer diff": `Usage: layerfs layer diff [-o FILE.tar] NAME

Writes what a layer changes in its parent as an OCI image layer, to standard
output or to FILE.tar.
` + storeOptionsHelp + `
Example:
  layerfs layer diff debian -o debian.tar
`,
	"layer rm": `Usage: layerfs layer rm NAME...

Takes a name from a layer. With its last name the layer goes, and those below it
that have no name and nothing else on them. What something stands on is refused
(exit code 4).
` + storeOptionsHelp + `
Example:
  layerfs layer rm busybox:latest
`,
	"container": `Usage: layerfs container create|mount|umount|ls|rm|changes|diff|commit ...

Containers are layers that can be changed.

Example:
  layerfs container create --from debian c1
  cp hello.txt $(layerfs container mount c1)/etc/
  layerfs container changes c1
  layerfs container commit c1 debian-hello
`,
	"container create": `Usage: layerfs container create [--from LAYER] NAME

Makes a container that stands on LAYER, or on nothing.
` + storeOptionsHelp + `
Example:
  layerfs container create --from debian c1
`,
	"container mount": `Usage: layerfs container mount [--read-only] [--volatile] NAME [DIR]

Mounts a container on DIR, or where the store sees fit, and prints the directory.
One that is mounted already stays so. A volatile mount never syncs: after a crash
the container is to be thrown away.
` + storeOptionsHelp + `
Example:
  ls $(layerfs container mount c1)
`,
	"container umount": `Usage: layerfs container umount NAME...

Unmounts containers.
` + storeOptionsHelp + `
Example:
  layerfs container umount c1
`,
	"container ls": `Usage: layerfs container ls [--size] [--json]

Lists containers, with --size also what they take on disk beyond their layers.
` + storeOptionsHelp + `
Example:
  layerfs container ls --size
`,
	"container rm": `Usage: layerfs container rm [-f|--force] NAME...

Removes containers. One that is mounted is refused (exit code 4), or unmounted
first with --force.
` + storeOptionsHelp + `
Example:
  layerfs container rm c1
`,
	"container changes": `Usage: layerfs container changes [--json] NAME

Lists what was added (A), changed (C) and deleted (D), like docker diff.
` + storeOptionsHelp + `
Example:
  layerfs container changes c1
`,
	"container diff": `Usage: layerfs container diff [-o FILE.tar] NAME

Writes what a container changes in its layer as an OCI image layer, to standard
output or to FILE.tar. It may be mounted and in use.
` + storeOptionsHelp + `
Example:
  layerfs container diff c1 -o layer.tar
`,
	"container commit": `Usage: layerfs container commit NAME LAYER

Makes a layer of what a container is now, on top of the container's own layer, and
prints its id. The container stays as it is, and may be mounted.
` + storeOptionsHelp + `
Example:
  layerfs container commit c1 debian-hello
`,
	"device": `Usage: layerfs device resize|deactivate|convert ...

The pool of a store with the driver devicemapper or thin.

Example:
  layerfs device resize 200G
`,
	"device convert": `Usage: layerfs device convert --to thin|devicemapper

Moves the store to the other of the two drivers, on the same data file, with all layers
and containers. Nothing of it may be mounted. When it was interrupted, the same command
completes it; until then the store refuses others.
` + storeOptionsHelp + `
Example:
  layerfs device convert --to devicemapper
`,
	"device resize": `Usage: layerfs device resize SIZE

Makes the data of the pool larger. Containers that wait for space go on.
` + storeOptionsHelp + `
Example:
  layerfs device resize 200G
`,
	"device deactivate": `Usage: layerfs device deactivate

Takes the pool and its devices out of the kernel, so that what it lies on can be
unmounted or moved. The next command on the store brings it back.
` + storeOptionsHelp + `
Example:
  layerfs device deactivate
`,
	"info": `Usage: layerfs info [--json]

Shows the store and its driver with the fields of docker info.
` + storeOptionsHelp + `
Example:
  layerfs info
`,
}
