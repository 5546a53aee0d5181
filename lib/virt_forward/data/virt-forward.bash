# bash completion for virt-forward                                  -*- shell-script -*-
#
# Commands and options are read from --help, guests from virsh, forwards from virt-forward list.

_virt_forward_help()
{
    COLUMNS=200 timeout 2 virt-forward "$@" --help 2>/dev/null
}

# Print the options of a command one a line, each with the name of its value if it has one.
_virt_forward_options()
{
    _virt_forward_help "$@" | sed -n '/^  -/{s/^  //;s/  .*//;p}' | grep -oE -- '--?[a-z][a-z0-9-]*( [A-Z]+)?'
}

# Print the guests of the libvirt that the configuration names. Reading needs no group and no password; the libvirt
# of another host might ask for one.
_virt_forward_guests()
{
    local uri
    uri=$(sed -nE "s|^[[:blank:]]*uri[[:blank:]]*=[[:blank:]]*[\"']([^\"']+:///[^\"']*)[\"'].*|\1|p" \
        "${VIRT_FORWARD_CONFIG:-/etc/virt-forward/config.toml}" 2>/dev/null)
    timeout 2 virsh --connect "${uri:-qemu:///system}" --readonly --quiet list --all --name </dev/null 2>/dev/null
}

# Add what begins with the word that is completed; a name may have blanks, so one a line.
_virt_forward_add()
{
    local line
    while IFS= read -r line; do
        [[ $line && $line == "$1"* ]] && COMPREPLY+=("$(printf '%q' "$line")")
    done
}

# Add forwards. ":" ends a word for readline, which then replaces only what comes after it.
_virt_forward_add_specs()
{
    local typed=${COMP_LINE:0:COMP_POINT} line
    typed=${typed##*[[:blank:]]}
    local done_part=''
    [[ $typed != *:* || $COMP_WORDBREAKS != *:* ]] || done_part=${typed%:*}:
    while IFS= read -r line; do
        [[ $line == "$typed"* ]] && COMPREPLY+=("${line#"$done_part"}")
    done < <(timeout 2 virt-forward list --specs -- "$1" </dev/null 2>/dev/null)
}

_virt_forward()
{
    COMPREPLY=()
    local cur=${COMP_WORDS[COMP_CWORD]} command='' domain='' word option
    local value='' # the name of the value that the option before takes
    local -A takes=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [[ $value ]]; then
            value=''
        elif [[ $word == -* ]]; then
            value=${takes[$word]-}
        elif [[ ! $command ]]; then
            command=$word
            while read -r option value; do takes[$option]=$value; done < <(_virt_forward_options "$command")
            value=''
        elif [[ ! $domain ]]; then
            # As it was typed, with quotes and backslashes; it must not be evaluated.
            domain=${word//[\\\"\']/}
        fi
    done
    case $command,$value,$cur in
        ,*,-*) _virt_forward_add "$cur" < <(_virt_forward_options) ;;
        ,*) _virt_forward_add "$cur" < <(_virt_forward_help | sed -nE 's/^    ([a-z]+) .*/\1/p') ;;
        *,IF,* | *,NIC,*) _virt_forward_add "$cur" < <(cd /sys/class/net && printf '%s\n' *) ;;
        *,,-*) _virt_forward_add "$cur" < <(printf '%s\n' "${!takes[@]}" | sort | grep '^--') ;;
        list,,* | check,,*) _virt_forward_add "$cur" < <(_virt_forward_guests) ;;
        add,,* | remove,,*)
            if [[ ! $domain ]]; then
                _virt_forward_add "$cur" < <(_virt_forward_guests)
            elif [[ $command == remove ]]; then
                _virt_forward_add_specs "$domain"
            fi
            ;;
    esac
}

complete -F _virt_forward virt-forward
