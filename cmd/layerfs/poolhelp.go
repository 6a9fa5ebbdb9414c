package main

func init() {
	for name, text := range poolHelp {
		commandHelp[name] = text
	}
}

// poolHelp is what the commands about pools and thin devices print for --help.
var poolHelp = map[string]string{
	"pool": `Usage: layerfs pool create|status|resize|check|trim|message|dump|restore|wait|mount|serve POOL ...

A pool is a directory with one sparse data file and its index. Thin devices
live in it: they take space only for what is written, and their snapshots
share it. It means what Linux's dm-thin means, and needs no root.

Example:
  layerfs pool create /pool --data-size 100G
  layerfs thin create /pool disk --size 10G
  layerfs pool mount /pool /mnt
`,
	"thin": `Usage: layerfs thin create|snap|ls|rm|resize|status|delta|trace|read|write POOL ...

Thin devices of a pool (see ` + "`layerfs pool --help`" + `).

Example:
  layerfs thin create /pool base --size 10G
  layerfs thin snap /pool base container1
  layerfs thin ls /pool
`,
	"pool create": `Usage: layerfs pool create POOL [OPTION]...

Makes a pool in the directory POOL, which must not exist or be empty.

  --data-size SIZE           100G unless given; the file is sparse
  --block-size SIZE          64K; 64K to 1G in multiples of 64K, for ever
  --low-water PERCENT|SIZE   10%; free space at which 'pool wait' reports
  --error-if-no-space        a full pool gives errors at once, else writers wait
  --no-space-timeout TIME    60s; how long they wait; 0 is for ever
  --skip-block-zeroing       new blocks that are written in part keep old data
  --no-discard-passdown      freed blocks keep their space in the data file
  --autoextend-threshold P --autoextend-percent P [--max-size SIZE]
                             grow by P of its size when P of it is used
  --min-free-space PERCENT   0%; what making a device must leave free

Example:
  layerfs pool create /pool --data-size 200G --min-free-space 10%
`,
	"pool status": `Usage: layerfs pool status [--dm|--json] POOL

Shows the pool with the fields of docker info. --dm prints the status line of
the kernel's thin-pool target.

Example:
  layerfs pool status /pool
`,
	"pool resize": `Usage: layerfs pool resize POOL SIZE

Makes the pool larger. Writers that wait for space go on.

Example:
  layerfs pool resize /pool 200G
`,
	"pool check": `Usage: layerfs pool check [--repair] [--json] POOL

Looks at the whole pool, which nobody may be using: every node of the index,
every mapping, every count. Exit code 6 when something is wrong. --repair
unmaps what cannot be right, says what that was, and clears needs_check.

Example:
  layerfs pool check /pool
`,
	"pool trim": `Usage: layerfs pool trim POOL

Gives the space of all free blocks back to the file system. Freed blocks are
given back by themselves; this is for what came in by restore.

Example:
  layerfs pool trim /pool
`,
	"pool message": `Usage: layerfs pool message POOL MESSAGE

Sends a message of the kernel's thin-pool target: create_thin ID,
create_snap ID ORIGIN, delete ID, set_transaction_id OLD NEW,
reserve_metadata_snap, release_metadata_snap.

Example:
  layerfs pool message /pool "create_snap 1 0"
`,
	"pool dump": `Usage: layerfs pool dump [--export] POOL

Writes the metadata as thin_dump does. With what thin_restore makes of it, the
data file POOL/data is a data device of dm-thin. Names and sizes, for which
the XML has no place, go to POOL/data.json. With --export the pool takes no
writes until it is restored, because the kernel may now write its data.

Example:
  layerfs pool dump --export /pool > pool.xml
  truncate -s 64M meta && thin_restore -i pool.xml -o meta
`,
	"pool restore": `Usage: layerfs pool restore POOL --data FILE [--sidecar FILE] < pool.xml
       layerfs pool restore POOL --data FILE --metadata FILE

Makes a pool of a data file and its metadata: thin_dump's XML on standard
input, or dm-thin's own metadata (thin_dump must be installed). The data file
moves into the pool. POOL may be the exported pool that FILE is the data of.
Names and sizes come from the sidecar, FILE.json unless given, or from
Docker's ../metadata beside a loop-lvm pair; other devices are called thin-ID.

Example:
  thin_dump meta | layerfs pool restore /pool --data /pool/data
  layerfs pool restore /new --data devicemapper/data --metadata devicemapper/metadata
`,
	"pool wait": `Usage: layerfs pool wait [--event low-water|out-of-space|ok] POOL

Returns when the event holds, at once if it does already.

Example:
  layerfs pool wait --event low-water /pool && mail -s "pool low" root
`,
	"pool mount": `Usage: layerfs pool mount [-f|--foreground] [--allow-other] POOL MOUNTPOINT

Shows every thin device as a file. Losetup, fuse2fs, qemu and dd can use it;
punching holes frees blocks. Unmount with layerfs umount.

Copy an image into a device with dd or qemu-img convert -n: cp skips holes,
and what was in the device there stays.

Example:
  layerfs pool mount /pool /mnt && mkfs.ext4 /mnt/disk
`,
	"pool serve": `Usage: layerfs pool serve POOL --nbd unix:PATH

Offers every thin device as an NBD export by its name, until a SIGTERM.

Example:
  layerfs pool serve /pool --nbd unix:/run/pool.sock &
  qemu-img convert -n disk.qcow2 nbd+unix:///disk?socket=/run/pool.sock
`,
	"thin create": `Usage: layerfs thin create POOL NAME --size SIZE
       layerfs thin create POOL NAME --origin FILE [--size SIZE]

Makes an empty thin device, or one that shows FILE, which must not change any
more, until it is written.

Example:
  layerfs thin create /pool disk --size 10G
`,
	"thin snap": `Usage: layerfs thin snap POOL ORIGIN NAME

Makes a snapshot, at once, however large ORIGIN is. It can be written and be
the origin of others.

Example:
  layerfs thin snap /pool base container1
`,
	"thin ls": `Usage: layerfs thin ls [--json] POOL

Lists the devices: what they map, and what no other device maps. With --json
all amounts are in bytes; mapped_blocks and exclusive_blocks are there besides.

Example:
  layerfs thin ls /pool
`,
	"thin rm": `Usage: layerfs thin rm POOL NAME

Removes a device that nobody has open. Returns when its blocks are free.

Example:
  layerfs thin rm /pool container1
`,
	"thin resize": `Usage: layerfs thin resize [--shrink] POOL NAME SIZE

Sets the size of a device that nobody has open. What --shrink cuts off is lost.

Example:
  layerfs thin resize /pool disk 20G
`,
	"thin status": `Usage: layerfs thin status [--json] POOL NAME

Prints the status line of the kernel's thin target: mapped sectors and the
highest mapped one.

Example:
  layerfs thin status /pool disk
`,
	"thin delta": `Usage: layerfs thin delta [--json] POOL LEFT RIGHT

Compares two devices block by block, from the index alone: same, different,
left_only, right_only, each with its first virtual block and length.

Example:
  layerfs thin delta /pool base container1
`,
	"thin trace": `Usage: layerfs thin trace [--json] POOL NAME BLOCK

Says where a virtual block lives and which device first wrote it.

Example:
  layerfs thin trace /pool container1 0x44f
`,
	"thin read": `Usage: layerfs thin read POOL NAME OFFSET LENGTH

Writes a part of a device to standard output. The device may be in use.

Example:
  layerfs thin read /pool disk 0 1M > first-megabyte
`,
	"thin write": `Usage: layerfs thin write POOL NAME OFFSET LENGTH

Writes standard input to a device, in order, durably.

Example:
  layerfs thin write /pool disk 0 1M < first-megabyte
`,
}
