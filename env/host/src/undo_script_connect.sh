if ! v uri >/dev/null; then
    printf 'virsh cannot connect to %s: is libvirtd running, and may this user connect?\n' "${uri:-its default URI}" >&2
    exit 1
fi
