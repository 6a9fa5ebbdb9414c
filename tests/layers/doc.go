// Package layers tests `layerfs diff`, `apply` and `changes` against a full
// comparison: the test itself reads the merged tree and the lower tree
// wholly, says what must be in the layer, and unpacks the layer with an
// extractor of its own, which knows layer.md and nothing else.
//
// LAYERFS_TEST_SEED repeats a random history, LAYERFS_TEST_OPS says how many
// histories are played. oci-tools.sh, which is run by hand, does a real build with
// Buildah and lets umoci, skopeo and Podman work on the outcome.
package layers
