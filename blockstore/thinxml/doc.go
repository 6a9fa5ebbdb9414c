// Package thinxml reads and writes the XML of thin_dump and thin_restore: the
// metadata of a dm-thin pool as text, which is how pools are exchanged with the
// kernel's.
//
// # Format
//
//	metadata   <superblock uuid= time=u32 transaction=u64 [flags=u32] [version=u32]
//	               data_block_size=u32 nr_data_blocks=u64 [metadata_snap=u64]> (def | device)* </superblock>
//	def        <def name=> map* </def>
//	device     <device dev_id=u24 mapped_blocks=u64 transaction=u64 creation_time=u32 snap_time=u32>
//	               (map | <ref name=/>)* </device>
//	map        <single_mapping origin_block= data_block= time=u24/>
//	         | <range_mapping origin_begin= data_begin= length= time=u24/>
//
// data_block_size is in 512-byte sectors. An origin block is one of the thin
// device, a data block one of the pool: data block b lies at byte
// b × data_block_size × 512 of the data device, without any offset.
//
// A def is a list of mappings that several devices share; a ref stands for all
// of them, and its def comes before it. thin_dump of 1.0.5 and later writes
// them, 0.9.0 does not know them.
//
// The size of a device is in none of this: dm-thin takes it from the table. The
// held root (metadata_snap) is the number of a block in the metadata device,
// which means nothing elsewhere: it is read and dropped, as by thin_restore.
//
// # What is read
//
// What thin_restore 0.9.0 or 1.x reads: comments, text between the elements,
// an XML declaration, elements closed either way, devices in any order.
//
// Those tools believe most of what they are told. Read does not: whatever it
// hands to a Visitor keeps the invariants
//
//   - a block is a multiple of 64 KiB between 64 KiB and 1 GiB (thin_ctr);
//   - all offsets in bytes, of the pool and of its devices, are below 2^63,
//     and data blocks below 2^40 (pack_block_time);
//   - a device has an id below 2^24 (MAX_DEV_ID, dm-thin-metadata.h) which no
//     other device of the pool has;
//   - its mappings are in ascending order, do not overlap, lie in the pool, and
//     are as many as mapped_blocks says;
//   - no time is later than the pool's.
//
// Two blocks of one device may be mapped to one data block. The kernel never
// does that, but nothing is wrong with it, and to notice it would take memory
// for every mapping.
//
// # Hostile input
//
// The grammar is so small that it has a scanner of its own, which is also five
// times as fast as encoding/xml. There is no DOCTYPE, hence no entity; a value
// is printable ASCII without references, which no value of the format needs;
// no element nests deeper than the grammar does; a tag has at most maxTag bytes.
// Memory is one buffer, the set of device ids (some 10 MiB at most) and the
// defs, whose size together is limited (maxDefMemory), as is the number of
// ranges that all refs together may stand for (maxExpanded).
//
// # What is written
//
// To the byte what thin_dump 0.9.0 prints for the same metadata: no defs, no
// declaration, runs merged, closing tags of their own even for empty devices
// (1.x refuses <device/>). An exporter leaves UUID empty and sets Version: thin_dump
// prints uuid="" whatever the superblock says.
package thinxml
