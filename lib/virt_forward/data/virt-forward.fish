# fish completion for virt-forward: commands and options from --help, guests from virsh, forwards from list.

function __virt_forward_help
    COLUMNS=200 timeout 2 virt-forward $argv --help 2>/dev/null
end

# The options of a command, one a line, each with the name of its value if it has one.
function __virt_forward_options
    __virt_forward_help $argv | string match -r '^  -.*' | string replace -r '^  (.*?)(  .*)?$' '$1' |
        string match -ar -- '--?[a-z][a-z0-9-]*(?: [A-Z]+)?'
end

# The guests of the libvirt that the configuration names. Reading needs no group and no password; the libvirt of
# another host might ask for one.
function __virt_forward_guests
    set -l file /etc/virt-forward/config.toml
    test -n "$VIRT_FORWARD_CONFIG"; and set file $VIRT_FORWARD_CONFIG
    set -l uri (sed -nE "s|^[[:blank:]]*uri[[:blank:]]*=[[:blank:]]*[\"']([^\"']+:///[^\"']*)[\"'].*|\1|p" $file 2>/dev/null)
    test -n "$uri"; or set uri qemu:///system
    timeout 2 virsh --connect "$uri" --readonly --quiet list --all --name </dev/null 2>/dev/null |
        string match -r '.+'
end

function __virt_forward
    set -l command
    set -l domain
    set -l value
    set -l options
    set -l typed (commandline -ct)
    for word in (commandline -opc)[2..]
        if test -n "$value"
            set value
        else if string match -q -- '-*' $word
            set value (string replace -fr -- "^$word ([A-Z]+)\$" '$1' $options)
        else if test -z "$command"
            set command $word
            set options (__virt_forward_options $command)
        else if test -z "$domain"
            set domain $word
        end
    end
    if test -z "$command"
        if string match -q -- '-*' $typed
            __virt_forward_options | string replace -r ' .*' ''
        else
            __virt_forward_help | string replace -fr '^    ([a-z]+) +(.*)' '$1\t$2'
        end
    else if contains -- "$value" IF NIC
        command ls /sys/class/net
    else if test -n "$value"
        return
    else if string match -q -- '-*' $typed
        string replace -r ' .*' '' -- $options
    else if contains $command list check
        __virt_forward_guests
    else if contains $command add remove; and test -z "$domain"
        __virt_forward_guests
    else if test "$command" = remove
        timeout 2 virt-forward list --specs -- $domain </dev/null 2>/dev/null
    end
end

complete -c virt-forward -f -a '(__virt_forward)'
