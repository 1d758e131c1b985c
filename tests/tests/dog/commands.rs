//! The commands that run on both servers, one a line, without the address.
//!
//! `< TEXT` is the standard input (`A*5000` is 5,000 of them, `@FILE` the
//! output of an earlier command with `> FILE`), `~` a space, `{dir}` a
//! directory that each server has for itself, `{empty}` an empty argument.

/// A command of which the result may differ, and why.
pub(crate) type Different = (&'static str, &'static str);

/// In an unformatted cluster; the next format undoes their effect.
pub(crate) const DIFFERENT_FORMAT: [Different; 1] = [(
    "cluster format -c 1 -R -f",
    "VIDs are not used again, so the format that asks for it is refused",
)];

/// Run last, as the servers differ in their state afterwards.
pub(crate) const DIFFERENT: [Different; 3] = [
    (
        "vdi write ec 0 5000 < E*5000",
        "one copy is kept whatever was asked for; a sheep wants as many zones as strips",
    ),
    (
        "vdi clone -s second demo {empty}",
        "a VDI without a name could not be found again",
    ),
    (
        "vdi delete hyper",
        "dog clears its index as if it were a flat one, and a sheep then aborts",
    ),
];

pub(crate) const UNFORMATTED: &str = "
cluster info
cluster info -v
cluster info -r
cluster info -d
node list
node list -r
node info
node info -r
node md info
node stat -r
node recovery
node log level list
node log level get
vdi list
vdi list -r
vdi tree
vdi graph
vdi create early 4M
vdi delete early
vdi read early
vdi write early < x
vdi snapshot -s t early
vdi clone -s t early other
vdi rollback -s t early -f
vdi resize early 8M
vdi getattr early k
vdi setattr early k v
vdi check early
vdi object location early
vdi object map early
vdi lock list
vdi lock unlock early
vdi backup -F s -s t early
vdi track early
cluster check
cluster alter-copy -c 1 -f
";

pub(crate) const FORMATS: &str = "
cluster format -c 1 -b nosuch
cluster format -c 1 -V
cluster format -c 1 -z 19
cluster format -c 1 -z 32
cluster format -c 1 -b tree -f
cluster info
cluster format -c 2 -f
cluster info -v
cluster format -c 4:2 -f
cluster info -v
cluster format -t -c 2 -f
vdi create strict 8M
vdi list
vdi create -c 1 strict1 8M
vdi write strict1 < data
cluster format -c 1 -F -f
cluster info -v
cluster format -f
cluster info -v
cluster format -l -c 1 -z 20 -f
cluster info -v
vdi lock list
vdi create locked 8M
vdi list
vdi lock list
vdi lock unlock locked
";

/// While a client has locked `locked`.
pub(crate) const LOCKED: &str = "
vdi lock list
vdi lock unlock locked
vdi lock list
vdi lock unlock locked
";

pub(crate) const NODE: &str = "
cluster format -c 1 < no
cluster format -c 1 -f
cluster info
cluster info -v
cluster info -r
cluster info -d
node list
node list -r
node info
node info -r
node md info
node md info -A
node md info -r
node stat
node stat -r
node recovery
node recovery -r
node recovery info
node recovery get-throttle
node recovery set-throttle 10 100
node recovery get-throttle
node recovery set-throttle 0 0
node log level list
node log level get
node log level set debug
node log level get
node log level set info
node log level set nosuch
node vnodes set 10
node kill 5
node md plug /nonexistent
node md unplug /nonexistent
node format {dir}/x plain
cluster alter-copy -c 2 -f
cluster info -v
cluster alter-copy -c 1 -f
cluster recover force -f
cluster recover disable -f
cluster info
cluster recover enable -f
cluster info
";

pub(crate) const VDIS: &str = "
vdi list
vdi list -r
vdi tree
vdi graph
vdi lock list
vdi create demo 64M
vdi create demo 64M
vdi create -v dv 4M
vdi create -r dr 4M
vdi create bad 0
vdi create bad -1
vdi create bad x
vdi create bad 5T
vdi create tiny 1
vdi create odd 5000001
vdi create -z 20 small 8M
vdi create -z 25 large 128M
vdi create -z 19 bad 8M
vdi create -z 32 bad 8M
vdi create -c 2 two 8M
vdi create -c 2:1 ec 8M
vdi create -c 4:2 ec42 8M
vdi create -c 99 bad 8M
vdi create -c 3:1 bad 8M
vdi create -P pre 8M
vdi create -y hyper 3T
vdi create sp~ace 4M
vdi create 日本 4M
vdi list
vdi list -r
vdi list demo
vdi list nosuch
vdi list -o 8076d39600000000
node info
vdi write demo 0 8M < A*8388608
vdi read demo 0 8M
vdi write demo 5000000 1000 < B*1000
vdi read demo 4999990 1020
vdi read demo
vdi write demo 64M 4 < past
vdi write demo 67108860 4 < last
vdi write demo 67108862 4 < over
vdi read demo 64M 4
vdi read demo 128M 4
vdi read nosuch
vdi write nosuch < x
vdi write demo 100 10 < short
vdi write -w demo 12M 5 < cache
vdi read demo 12M 5
vdi write hyper 1T 5000 < H*5000
vdi read hyper 1T 5000
vdi object location demo
vdi object location demo -i 0
vdi object location demo -i 5
vdi object location nosuch
vdi object map demo
vdi object map demo -i 1
vdi object map nosuch
vdi object map hyper
vdi object dump-inode demo
vdi track demo
vdi track demo -i 0
vdi track nosuch
vdi check demo
vdi check -e demo
vdi check nosuch
vdi check small
vdi check ec
vdi check hyper
benchmark io -f -t 10 -n 1 small
";

pub(crate) const FAMILIES: &str = "
vdi snapshot demo
vdi snapshot -s first demo
vdi snapshot -s first demo
vdi snapshot -s 2 demo
vdi snapshot -v -s second demo
vdi snapshot -R -s reduced demo
vdi snapshot -s x nosuch
vdi snapshot -s t hyper
vdi write demo 0 100 < C*100
vdi snapshot -s third demo
vdi list
vdi list -r
vdi tree
vdi graph
vdi read demo -s first 0 10
vdi read demo -s 1 0 10
vdi read demo -s third 0 10
vdi read demo -s nosuch 0 10
vdi write demo -s first 0 10 < 0123456789
vdi object location demo -s first
vdi object map demo -s first
vdi object map demo
vdi check demo -s first
vdi check demo -s nosuch
vdi clone demo copy
vdi clone -s first demo copy
vdi clone -s first demo copy
vdi clone -s nosuch demo copy2
vdi clone -s second -v demo copyv
vdi clone -s second -n demo apart
vdi clone -s first nosuch copy3
vdi list
vdi tree
vdi read copy 0 10
vdi write copy 0 10 < copycopyco
vdi read copy 0 10
vdi read demo -s first 0 10
vdi read apart 0 10
vdi check copy
cluster check
vdi resize demo 128M
vdi resize demo 64M
vdi resize demo x
vdi resize nosuch 64M
vdi resize demo 5T
vdi resize -s first demo 256M
vdi list demo
vdi rollback demo
vdi rollback -s first demo < no
vdi rollback -s first demo < yes
vdi rollback -s nosuch -f demo
vdi rollback -s third -f demo
vdi read demo 0 10
vdi list demo
";

pub(crate) const ATTRIBUTES: &str = "
vdi setattr demo key value
vdi setattr demo key value2
vdi setattr -x demo key value3
vdi getattr demo key
vdi getattr demo nokey
vdi getattr nosuch key
vdi setattr -x demo other val
vdi getattr demo other
vdi setattr -d demo key
vdi getattr demo key
vdi setattr -d demo key
vdi setattr demo piped < from~a~pipe
vdi getattr demo piped
vdi setattr nosuch key value
vdi lock list
vdi lock unlock demo
vdi lock unlock nosuch
";

pub(crate) const BACKUPS: &str = "
vdi backup -s first demo
vdi backup demo
vdi backup -F nosuch -s third demo
vdi create target 128M
vdi snapshot -s first target
vdi backup -F first -s third demo > backup
vdi restore -s first nosuch < @backup
vdi restore -s first target < @backup
vdi restore -s first demo < garbage
vdi list target
vdi read target 0 10
vdi alter-copy -c 2 demo -f
vdi alter-copy -c 1 demo -f
cluster snapshot list {dir}/snapshots
cluster snapshot save one {dir}/snapshots
cluster snapshot save one {dir}/snapshots
cluster snapshot list {dir}/snapshots
cluster snapshot show one {dir}/snapshots
";

pub(crate) const DELETIONS: &str = "
vdi delete -s nosuch demo
vdi delete -s first demo
vdi delete -s 2 demo
vdi delete demo
vdi delete demo
vdi delete nosuch
vdi delete -m 1 large
vdi list
vdi list -r
vdi tree
vdi graph
vdi read copy 0 10
vdi read demo -s third 0 10
vdi create demo 4M
vdi list demo
node info
node stat
cluster snapshot load one {dir}/snapshots -f
vdi list
cluster reweight
";
