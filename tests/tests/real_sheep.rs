//! Tests against daemons of the C Sheepdog, in a cluster of their own.
