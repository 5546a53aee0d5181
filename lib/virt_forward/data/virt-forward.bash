# bash completion for virt-forward                                  -*- shell-script -*-

_virt_forward_domains()
{
    # Names may hold spaces, so one a line; a silent libvirt completes nothing.
    local IFS=$'\n' name
    local -a names
    mapfile -t names < <(timeout 2 virsh --quiet list --all --name 2>/dev/null)
    for name in "${names[@]}"; do
        [[ $name && $name == "$1"* ]] && COMPREPLY+=("$(printf '%q' "$name")")
    done
}

_virt_forward()
{
    COMPREPLY=()
    local cur=${COMP_WORDS[COMP_CWORD]} word command=''
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word == -* ]] || { command=$word; break; }
    done
    case $command:$cur in
        :-*) mapfile -t COMPREPLY < <(compgen -W '--help --version' -- "$cur") ;;
        :*) mapfile -t COMPREPLY < <(compgen -W 'list sync rules check watch init' -- "$cur") ;;
        list:-* | check:-*) mapfile -t COMPREPLY < <(compgen -W '--help --json' -- "$cur") ;;
        init:-*) mapfile -t COMPREPLY < <(compgen -W '--help --bridge --mac --subnet --ipv6 --uplink --dns --lan --yes --dry-run --apply' -- "$cur") ;;
        *:-*) mapfile -t COMPREPLY < <(compgen -W '--help' -- "$cur") ;;
        list:* | check:*) _virt_forward_domains "$cur" ;;
    esac
}

complete -F _virt_forward virt-forward
