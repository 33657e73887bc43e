using System.Collections.Concurrent;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Blockd;

/// <summary>A declaration and the part of the daemon that it is about.</summary>
internal sealed record DeclaredScope(DeclaredReconciler Reconciler, IDeclaredWorld World);

/// <summary>
/// What is declared: one state for the whole node, and one for each tenant that declares its own. A tenant's is brought about with the
/// tenant's rights, so that it reaches what a request by hand would reach and nothing else. Nothing is declared twice. Thread-safe.
/// </summary>
#pragma warning disable CA1001 // The semaphore has no handle.
internal sealed class DeclaredStates(IMetaStore meta, TenantDirectory tenants, Func<ApiCaller, IDeclaredWorld> worldOf)
#pragma warning restore CA1001
{
    private readonly DeclaredScope _node = ScopeOf(meta, worldOf(ApiCaller.Administrator), DeclaredDocument.Key);
    private readonly ConcurrentDictionary<string, DeclaredScope> _tenants = new(StringComparer.Ordinal);
    private readonly SemaphoreSlim _declaring = new(1, 1);

    /// <summary>All that are to be kept; those of tenants that are gone are not.</summary>
    public IReadOnlyList<DeclaredReconciler> All =>
        [_node.Reconciler, .. _tenants.Where(t => tenants.Find(t.Key) is not null).OrderBy(t => t.Key, StringComparer.Ordinal).Select(t => t.Value.Reconciler)];

    /// <summary>The caller's. Throws 403 for who sees single volumes only: a declaration is a tenant's or the node's.</summary>
    public DeclaredScope Of(ApiCaller caller)
    {
        if (!caller.IsConfined) return _node;
        string tenant = caller.Tenant ?? throw new ApiException(403, "whole-node", "what is declared is a tenant's or the whole node's; a token of single volumes is not enough");
        return TenantScope(tenant);
    }

    /// <summary>Reads what was declared. Throws <see cref="MetaException"/>; <paramref name="warn"/> is told what is damaged: of that nothing is
    /// declared until somebody does it again.</summary>
    public async Task LoadAsync(Action<string> warn)
    {
        await LoadAsync(_node, warn);
        foreach (TenantRecord tenant in tenants.List()) await LoadAsync(TenantScope(tenant.Name), warn);
    }

    /// <summary>Declares a state in the place of the caller's. Null when that is durable, else why not.</summary>
    public async Task<DirectoryFault?> DeclareAsync(ApiCaller caller, DeclaredState? state, long? revision)
    {
        DeclaredScope mine = Of(caller);
        await _declaring.WaitAsync();
        try
        {
            if (state is not null && Elsewhere(mine, NamesOf(state)) is { } other) return other;
            return await mine.Reconciler.DeclareAsync(state, revision);
        }
        finally
        {
            _declaring.Release();
        }
    }

    /// <summary>A tenant is gone, or a new one of its name begins: nothing is declared for it.</summary>
    public async Task ForgetAsync(string tenant)
    {
        await _declaring.WaitAsync();
        try
        {
            DeclaredScope scope = TenantScope(tenant);
            await LoadAsync(scope, _ => { }); // what another run of the daemon may have left
            if (await scope.Reconciler.DeclareAsync(null, null) is null) _tenants.TryRemove(tenant, out _);
        }
        finally
        {
            _declaring.Release();
        }
    }

    private static DeclaredScope ScopeOf(IMetaStore meta, IDeclaredWorld world, string key) => new(new DeclaredReconciler(meta, world, key), world);

    private DeclaredScope TenantScope(string tenant) => _tenants.GetOrAdd(
        tenant, name => ScopeOf(meta, worldOf(new ApiCaller("tenant " + name, ApiRole.Operator, name)), DeclaredDocument.TenantKeys + name));

    private static async Task LoadAsync(DeclaredScope scope, Action<string> warn)
    {
        try
        {
            await scope.Reconciler.LoadAsync();
        }
        catch (InvalidDataException e)
        {
            warn($"{e.Message}; nothing is reconciled until it is declared again (pfcli apply)");
        }
    }

    // Two declarations of one thing would undo each other for ever.
    private DirectoryFault? Elsewhere(DeclaredScope mine, HashSet<DeclaredName> names)
    {
        foreach ((string whose, DeclaredScope scope) in _tenants.Select(t => ($"by tenant '{t.Key}'", t.Value)).Append(("for the whole node", _node)))
        {
            if (ReferenceEquals(scope, mine) || scope.Reconciler.Document is not { } document) continue;
            if (NamesOf(document.State).FirstOrDefault(names.Contains) is { } twice)
                return new DirectoryFault(IoStatus.Conflict, "declared-elsewhere", $"{twice.Kind} {twice.Name} is declared {whose} already; take it out of one of the files", "state");
        }

        return null;
    }

    private static HashSet<DeclaredName> NamesOf(DeclaredState state) =>
    [
        .. (state.Volumes ?? []).Select(v => new DeclaredName(DeclaredPlan.Volume, v.Name)),
        .. (state.Targets ?? []).Select(t => new DeclaredName(DeclaredPlan.Target, t.Name.ToLowerInvariant())),
        .. (state.Policies ?? []).Select(p => new DeclaredName(DeclaredPlan.Policy, p.Name)),
    ];
}
