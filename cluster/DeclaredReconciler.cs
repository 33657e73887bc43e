using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

/// <summary>The world that is brought to what is declared.</summary>
public interface IDeclaredWorld
{
    /// <summary>What there is.</summary>
    Task<CurrentState> ReadAsync();

    /// <summary>Sends one request of the admin API; null when it was done, else why not.</summary>
    Task<string?> SendAsync(DeclaredStep step);
}

/// <summary>Where one difference stands.</summary>
/// <param name="Step">What is to be done.</param>
/// <param name="Reason">Why it is not done, or null.</param>
/// <param name="NotBefore">Nanoseconds of the caller's clock before which it is not tried again; 0: at once.</param>
public sealed record DeclaredDifference(DeclaredStep Step, string? Reason, long NotBefore);

/// <summary>
/// Brings what is to what is declared, again and again: each difference is worked on at once when it is new, then after one second, two,
/// four, up to a minute; one that nothing can be done about costs nothing but a look. The document lies in the metadata store.
/// Time is told by the caller (nanoseconds of a clock that never jumps). One <see cref="StepAsync"/> or change at a time (a lock
/// sees to it); the rest is thread-safe.
/// </summary>
#pragma warning disable CA1001 // The semaphore has no handle.
public sealed class DeclaredReconciler(IMetaStore meta, IDeclaredWorld world, string key = DeclaredDocument.Key)
#pragma warning restore CA1001
{
    private const long Second = 1_000_000_000, PauseMax = 60 * Second;

    private readonly SemaphoreSlim _one = new(1, 1);
    private readonly Dictionary<string, (int Tries, long NotBefore, string? Reason)> _tries = new(StringComparer.Ordinal);
    private volatile DeclaredDocument? _document;
    private long _revision, _highest;
    private volatile IReadOnlyList<DeclaredDifference> _differences = [];

    /// <summary>What is declared, or null.</summary>
    public DeclaredDocument? Document => _document;

    /// <summary>What stood between at the last step.</summary>
    public IReadOnlyList<DeclaredDifference> Differences => _differences;

    /// <summary>Reads what was declared. Throws <see cref="MetaException"/>, and <see cref="InvalidDataException"/> when it is damaged: then
    /// nothing is declared until somebody declares it again.</summary>
    public async Task LoadAsync()
    {
        if (await meta.GetAsync(key) is not { } entry) return;
        _revision = entry.ModRevision;
        _document = DeclaredDocument.Decode(entry);
    }

    /// <summary>Declares a state in place of the one before, or nothing; volumes that were deleted by hand may be made anew. Null when
    /// it is durable, else why not. <paramref name="revision"/>: only if that one is in force, 0 for none.</summary>
    public async Task<DirectoryFault?> DeclareAsync(DeclaredState? state, long? revision)
    {
        await _one.WaitAsync();
        try
        {
            long now = _document?.Declared ?? 0;
            if (revision is { } wanted && wanted != now)
                return new DirectoryFault(IoStatus.Conflict, "revision-differs", $"what is declared has revision {now} now; look at the difference again", "revision");
            CurrentState current = await world.ReadAsync();
            DeclaredDocument? next = null;
            if (state is not null)
            {
                // The numbers of those that are still there; also under another name, which is taken back.
                HashSet<uint> there = [.. current.Volumes.Select(v => v.Id)];
                HashSet<string> wished = [.. (state.Volumes ?? []).Select(v => v.Name)];
                var known = (_document?.Known ?? new Dictionary<string, uint>()).Where(k => there.Contains(k.Value) && wished.Contains(k.Key)).ToDictionary();
                next = new DeclaredDocument(state, known) { Declared = _highest = Math.Max(_revision, _highest) + 1 };
            }

            if (await SaveAsync(next) is { } fault) return fault;
            _tries.Clear();
            _differences = [];
            return null;
        }
        finally
        {
            _one.Release();
        }
    }

    /// <summary>Does what is due at <paramref name="now"/>; nanoseconds until there is more to do, null: when something changes.</summary>
    public async Task<long?> StepAsync(long now)
    {
        await _one.WaitAsync();
        try
        {
            if (_document is not { } document) return null;
            CurrentState current = await world.ReadAsync();
            if (Seen(document, current) is { } grown)
            {
                if (await SaveAsync(grown) is not null) return Second; // without it a deleted volume would be made anew: first this
                document = grown;
            }

            IReadOnlyList<DeclaredStep> steps = DeclaredPlan.Steps(document.State, current, document.Known);
            bool hasChanged = false;
            foreach (DeclaredStep step in steps.Where(s => s.Impossible is null))
            {
                (int tries, long notBefore, _) = _tries.GetValueOrDefault(step.Key);
                if (now < notBefore) continue;
                string? reason = await world.SendAsync(step);
                // Also what was done waits before it is done again: it may not stay.
                _tries[step.Key] = (tries + 1, now + Math.Min(PauseMax, Second << Math.Min(tries, 6)), reason);
                hasChanged = true;
            }

            if (hasChanged)
            {
                current = await world.ReadAsync();
                steps = DeclaredPlan.Steps(document.State, current, document.Known);
                if (Seen(document, current) is { } made) await SaveAsync(made);
            }

            foreach (string gone in _tries.Keys.Except(steps.Select(s => s.Key)).ToArray()) _tries.Remove(gone);
            _differences = [.. steps.Select(s => new DeclaredDifference(s, s.Impossible ?? _tries.GetValueOrDefault(s.Key).Reason, _tries.GetValueOrDefault(s.Key).NotBefore))];
            long[] due = [.. _differences.Where(d => d.Step.Impossible is null).Select(d => Math.Max(0, d.NotBefore - now))];
            return due.Length == 0 ? null : due.Min();
        }
        finally
        {
            _one.Release();
        }
    }

    private static DeclaredDocument? Seen(DeclaredDocument document, CurrentState current)
    {
        var known = document.Known.ToDictionary();
        Dictionary<string, CurrentVolume> volumes = current.Volumes.ToDictionary(v => v.Name, StringComparer.Ordinal);
        foreach (DeclaredVolume volume in document.State.Volumes ?? [])
        {
            if (volumes.TryGetValue(volume.Name, out CurrentVolume? there)) known[volume.Name] = there.Id;
        }

        return known.Count == document.Known.Count && known.All(k => document.Known.GetValueOrDefault(k.Key) == k.Value) ? null : document with { Known = known };
    }

    private async Task<DirectoryFault?> SaveAsync(DeclaredDocument? document)
    {
        ReadOnlyMemory<byte>? value = null;
        if (document is not null) value = document.Encode();
        MetaResult result = await MetaCommit.CommitAsync(meta, [new(key, _revision)], [new(key, value)]);
        if (result.Outcome != MetaOutcome.Committed) return MetaCommit.FaultOf(result.Outcome);
        _revision = document is null ? 0 : result.Revision;
        _document = document;
        return null;
    }
}
