namespace BlockServer.Blockd;

/// <summary>What a token may do. Each role may do all that the one before it may.</summary>
internal enum ApiRole
{
    /// <summary>Looks.</summary>
    Viewer,

    /// <summary>Changes volumes and what belongs to them.</summary>
    Operator,

    /// <summary>Changes the node: disks, tokens, tenants, who is denied.</summary>
    Admin,
}

/// <summary>What a route reaches; says how a token that is confined to a tenant or to single volumes may use it.</summary>
internal enum ApiReach
{
    /// <summary>Nobody's object: every token may use it.</summary>
    Everybody,

    /// <summary>The whole node: confined tokens are refused. What a new route is unless it says otherwise.</summary>
    Node,

    /// <summary>Many objects or a new one: the handler shows and changes only what the token sees (<see cref="ApiCall.Sees"/>).</summary>
    Seen,

    /// <summary>The volume that the path names behind <c>volumes/</c>.</summary>
    Volume,

    /// <summary>The target that the path names.</summary>
    Target,

    /// <summary>The policy that the path names.</summary>
    Policy,

    /// <summary>The tenant that the path names.</summary>
    Tenant,

    /// <summary>The task that the path names, by what it works on.</summary>
    Task,

    /// <summary>The session that the path names, by the volumes that it reaches.</summary>
    Session,
}
