//! Names, values and classes of opcodes and result codes, as the protocol's tables give them.

use sheep_proto::{Generation, Opcode, RequestBody, ResultCode, Retry};

/// Sections 5.1 to 5.6: code, name, and whether section 1.10 calls it a *force* operation.
const OPCODES: &[(u8, &str, bool)] = &[
    (0x01, "CREATE_AND_WRITE_OBJ", false),
    (0x02, "READ_OBJ", false),
    (0x03, "WRITE_OBJ", false),
    (0x04, "REMOVE_OBJ", false),
    (0x05, "DISCARD_OBJ", false),
    (0x11, "NEW_VDI", false),
    (0x12, "LOCK_VDI", false),
    (0x13, "RELEASE_VDI", false),
    (0x14, "GET_VDI_INFO", false),
    (0x15, "READ_VDIS", true),
    (0x16, "FLUSH_VDI", false),
    (0x17, "DEL_VDI", false),
    (0x18, "GET_CLUSTER_DEFAULT", true),
    (0x82, "GET_NODE_LIST", true),
    (0x84, "MAKE_FS", true),
    (0x85, "SHUTDOWN", true),
    (0x86, "STAT_SHEEP", false),
    (0x87, "STAT_CLUSTER", true),
    (0x89, "GET_VDI_ATTR", false),
    (0x8a, "FORCE_RECOVER", true),
    (0x90, "GET_STORE_LIST", true),
    (0x91, "SNAPSHOT", false),
    (0x92, "RESTORE", false),
    (0x93, "GET_SNAP_FILE", false),
    (0x94, "CLEANUP", true),
    (0x97, "STAT_RECOVERY", false),
    (0x98, "FLUSH_DEL_CACHE", false),
    (0x99, "NOTIFY_VDI_DEL", true),
    (0x9a, "KILL_NODE", true),
    (0xa1, "GET_OBJ_LIST", false),
    (0xa2, "GET_EPOCH", false),
    (0xa3, "CREATE_AND_WRITE_PEER", false),
    (0xa4, "READ_PEER", false),
    (0xa5, "WRITE_PEER", false),
    (0xa6, "REMOVE_PEER", false),
    (0xa7, "SET_CACHE_SIZE", false),
    (0xa8, "ENABLE_RECOVER", false),
    (0xa9, "DISABLE_RECOVER", false),
    (0xab, "GET_VDI_COPIES", true),
    (0xac, "COMPLETE_RECOVERY", true),
    (0xad, "FLUSH_NODES", false),
    (0xae, "FLUSH_PEER", false),
    (0xaf, "NOTIFY_VDI_ADD", true),
    (0xb0, "DELETE_CACHE", false),
    (0xb1, "MD_INFO", false),
    (0xb2, "MD_PLUG", false),
    (0xb3, "MD_UNPLUG", false),
    (0xb4, "GET_HASH", false),
    (0xb5, "REWEIGHT", false),
    (0xb6, "GET_CACHE_INFO", false),
    (0xb7, "CACHE_PURGE", false),
    (0xb8, "STAT", false),
    (0xb9, "GET_LOGLEVEL", true),
    (0xba, "SET_LOGLEVEL", true),
    (0xbb, "NFS_CREATE", false),
    (0xbc, "NFS_DELETE", false),
    (0xbd, "EXIST", true),
    (0xbe, "CLUSTER_INFO", true),
    (0xbf, "ALTER_CLUSTER_COPY", false),
    (0xc0, "ALTER_VDI_COPY", false),
    (0xc1, "DECREF_OBJ", false),
    (0xc2, "DECREF_PEER", false),
    (0xc3, "PREVENT_INODE_UPDATE", false),
    (0xc4, "ALLOW_INODE_UPDATE", false),
    (0xc5, "REPAIR_REPLICA", false),
    (0xc6, "OIDS_EXIST", true),
    (0xc7, "VDI_STATE_CHECKPOINT_CTL", false),
    (0xc8, "INODE_COHERENCE", false),
    (0xc9, "READ_DEL_VDIS", true),
    (0xca, "GET_RECOVERY", true),
    (0xcb, "SET_RECOVERY", true),
    (0xcc, "SET_VNODES", false),
    (0xcd, "GET_VNODES", false),
];

/// Section 2: code, name, and the first word of the *client action* column.
const RESULTS: &[(u32, &str, Retry)] = &[
    (0x00, "SUCCESS", Retry::Never),
    (0x01, "UNKNOWN", Retry::Never),
    (0x02, "NO_OBJ", Retry::AfterReload),
    (0x03, "EIO", Retry::Never),
    (0x04, "VDI_EXIST", Retry::Never),
    (0x05, "INVALID_PARMS", Retry::Never),
    (0x06, "SYSTEM_ERROR", Retry::Later),
    (0x07, "VDI_LOCKED", Retry::Never),
    (0x08, "NO_VDI", Retry::Never),
    (0x09, "NO_BASE_VDI", Retry::Never),
    (0x0a, "VDI_READ", Retry::Later),
    (0x0b, "VDI_WRITE", Retry::Later),
    (0x0c, "BASE_VDI_READ", Retry::Never),
    (0x0d, "BASE_VDI_WRITE", Retry::Later),
    (0x0e, "NO_TAG", Retry::Never),
    (0x0f, "STARTUP", Retry::Later),
    (0x10, "VDI_NOT_LOCKED", Retry::Never),
    (0x11, "SHUTDOWN", Retry::Later),
    (0x12, "NO_MEM", Retry::Later),
    (0x13, "FULL_VDI", Retry::Never),
    (0x14, "VER_MISMATCH", Retry::Never),
    (0x15, "NO_SPACE", Retry::Never),
    // "Y slowly or fail mount": this project fails the mount.
    (0x16, "WAIT_FOR_FORMAT", Retry::Never),
    (0x17, "WAIT_FOR_JOIN", Retry::Later),
    (0x18, "JOIN_FAILED", Retry::Never),
    (0x19, "HALT", Retry::Later),
    (0x1a, "READONLY", Retry::AfterReload),
    // What 0.9 calls by these names.
    (0x1b, "INCOMPLETE", Retry::Never),
    (0x1c, "COLLECTING_CINFO", Retry::Later),
    (0x1d, "INODE_INVALIDATED", Retry::AfterReload),
    // The fork of 2026.
    (0x1e, "DENIED", Retry::Never),
    (0x81, "OLD_NODE_VER", Retry::Never),
    (0x82, "NEW_NODE_VER", Retry::Never),
    (0x83, "NOT_FORMATTED", Retry::Never),
    (0x84, "INVALID_CTIME", Retry::Never),
    (0x85, "INVALID_EPOCH", Retry::Never),
    (0x86, "NETWORK_ERROR", Retry::Later),
    (0x87, "NO_CACHE", Retry::Never),
    // Again with twice the buffer; the same request gets the same answer.
    (0x88, "BUFFER_SMALL", Retry::Never),
    (0x89, "FORCE_RECOVER", Retry::Never),
    (0x8a, "NO_STORE", Retry::Never),
    (0x8b, "NO_SUPPORT", Retry::Never),
    (0x8c, "NODE_IN_RECOVERY", Retry::Later),
    (0x8d, "KILLED", Retry::Later),
    (0x8e, "OID_EXIST", Retry::Never),
    (0x8f, "AGAIN", Retry::Later),
    (0x90, "STALE_OBJ", Retry::Later),
    (0x91, "CLUSTER_ERROR", Retry::Later),
    (0x92, "VDI_NOT_EMPTY", Retry::Never),
    (0x93, "NOT_FOUND", Retry::Never),
    (0x94, "INCOMPLETE", Retry::Never),
    (0x95, "COLLECTING_CINFO", Retry::Later),
    (0x97, "GATEWAY_MODE", Retry::Never),
    (0x98, "INVALID_VNODES_STRATEGY", Retry::Never),
    (0x99, "NO_CHECKPOINT_ENTRY", Retry::Never),
];

#[test]
fn opcodes_are_those_of_section_5() {
    let known: Vec<_> = Opcode::ALL
        .iter()
        // The tracer's four codes are named in section 1.10, but not numbered.
        .filter(|opcode| !opcode.name().starts_with("TRACE_"))
        .map(|&opcode| (opcode as u8, opcode.name(), opcode.is_forced()))
        .collect();
    assert_eq!(known, OPCODES);
}

#[test]
fn result_codes_are_those_of_section_2() {
    let known: Vec<_> = ResultCode::ALL
        .iter()
        .map(|&code| (u32::from(code), code.name(), code.retry()))
        .collect();
    assert_eq!(known, RESULTS);
}

#[test]
fn result_code_unknown_is_not_transient() {
    for raw in (0..=0x100).filter(|raw| !RESULTS.iter().any(|(known, ..)| known == raw)) {
        assert_eq!(ResultCode::from(raw), ResultCode::Other(raw));
        assert_eq!(ResultCode::from(raw).retry(), Retry::Never);
    }
}

/// What the operation tables of the releases have in common: the oldest generation with
/// the opcode, and the newest.
fn served_by(opcode: u8) -> Option<(Generation, Generation)> {
    use Generation::{V0_7, V0_8, V0_9, V1_0};
    match opcode {
        0x91..=0x93 | 0xa7 | 0xad | 0xae => None,
        0xb6 => Some((V0_7, V0_9)),
        0xb7 => Some((V0_8, V0_9)),
        0xb8..=0xba => Some((V0_8, V1_0)),
        0xc3 | 0xc4 => Some((V0_9, V0_9)),
        0x18 | 0xc7 | 0xc9..=0xcd => Some((V1_0, V1_0)),
        0xbb..=0xc8 => Some((V0_9, V1_0)),
        _ => Some((V0_7, V1_0)),
    }
}

#[test]
fn every_generation_has_the_opcodes_of_its_operation_table() {
    for generation in Generation::ALL {
        for &opcode in Opcode::ALL {
            let served = served_by(opcode as u8)
                .is_some_and(|(first, last)| (first..=last).contains(&generation));
            assert_eq!(
                generation.has_opcode(opcode),
                served,
                "{opcode} on {generation}"
            );
            let checked = generation.check(opcode, &RequestBody::NONE, 0);
            assert_eq!(checked.is_ok(), served, "{opcode} on {generation}");
        }
    }
}

#[test]
fn versions_follow_the_generation() {
    for (generation, version) in Generation::ALL.into_iter().zip([0x08, 0x09, 0x09, 0x0a]) {
        for &opcode in Opcode::ALL {
            let version = if (opcode as u8) < 0x80 { 0x02 } else { version };
            assert_eq!(generation.proto_ver(opcode), version, "{opcode}");
        }
    }
}
