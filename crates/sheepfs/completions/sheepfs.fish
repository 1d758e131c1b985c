complete -c sheepfs -s a -l address -d 'Sheep to connect to [default: 127.0.0.1]' -r
complete -c sheepfs -s p -l port -d 'Port of addresses given without one [default: 7000]' -r
complete -c sheepfs -l embedded -d 'Start a small sheep in this process instead of connecting to one' -r -F
complete -c sheepfs -l connections -d 'Connections to the sheep, 1 to 64 [default: 8]' -r
complete -c sheepfs -l retry-for -d 'How long requests wait while no sheep responds [default: 60]' -r
complete -c sheepfs -l lock -d 'Whether to lock volumes against writers elsewhere [default: auto]' -r -f -a "auto\t'In clusters formatted with locking, lock a volume while it is attached'
require\t'Refuse to attach a volume that cannot be locked'
off\t'Take no locks: nothing keeps two writers apart'"
complete -c sheepfs -l attach -d 'Attach a volume, or a snapshot by its tag, before mounting; repeatable' -r
complete -c sheepfs -l uid -d 'Owner of the files: a number or a name [default: the mounting user]' -r
complete -c sheepfs -l gid -d 'Group of the files: a number or a name [default: that of the mounting user]' -r
complete -c sheepfs -l umask -d 'Permission bits that no file has, octal [default: 000]' -r
complete -c sheepfs -l log-format -d 'Form of the log with -f or -d [default: text]' -r -f -a "text\t'Plain text lines'
json\t'One JSON object per line'"
complete -c sheepfs -l pidfile -d 'Write the process id to FILE once ready, remove it at the end' -r -F
complete -c sheepfs -l read-only -d 'Refuse every write'
complete -c sheepfs -l attach-all -d 'Attach all volumes of the cluster before mounting; implied by --embedded'
complete -c sheepfs -s k -l pagecache -d 'Use the kernel\'s page cache for volumes'
complete -c sheepfs -s o -l objectcache -d 'Use the object cache of a sheep before version 1.0'
complete -c sheepfs -l allow-other -d 'Let all users access the mount, as far as file permissions allow'
complete -c sheepfs -l allow-root -d 'Let root access the mount besides the mounting user [default where permitted]'
complete -c sheepfs -l allow-none -d 'Let only the mounting user access the mount'
complete -c sheepfs -s f -l foreground -d 'Stay in the foreground and log to standard error'
complete -c sheepfs -s d -l debug -d 'Log every request; implies -f'
complete -c sheepfs -s n -d 'Accepted for scripts written for the original; it has no effect'
complete -c sheepfs -s h -l help -d 'Print help (see more with \'--help\')'
complete -c sheepfs -s V -l version -d 'Print version'
