using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>A volume that answers before it has done, for builds that are broken on purpose.</summary>
internal sealed class HastyDevice(IBlockDevice inner, SessionBreakage breakage) : IBlockDevice
{
    public ulong SizeBytes => inner.SizeBytes;

    public bool IsReadOnly => inner.IsReadOnly;

    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target) => inner.ReadAsync(offsetBytes, target);

    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        if (breakage != SessionBreakage.AckBeforeStore) return inner.WriteAsync(offsetBytes, source, Of(flags));
        _ = inner.WriteAsync(offsetBytes, source.ToArray(), flags).AsTask();
        return new ValueTask<IoStatus>(IoStatus.Ok);
    }

    public ValueTask<IoStatus> FlushAsync() =>
        breakage == SessionBreakage.FlushForgotten ? new ValueTask<IoStatus>(IoStatus.Ok) : inner.FlushAsync();

    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        inner.TrimAsync(offsetBytes, lengthBytes, Of(flags));

    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        inner.WriteZeroesAsync(offsetBytes, lengthBytes, Of(flags));

    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => inner.PrefetchAsync(offsetBytes, lengthBytes);

    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
        inner.MapAsync(offsetBytes, lengthBytes, runsMax, runs);

    private WriteFlags Of(WriteFlags flags) =>
        breakage == SessionBreakage.FlushForgotten ? flags & ~WriteFlags.Fua : flags;
}

/// <summary>A SCSI target that does not keep what the transport relies on, for builds that are broken on purpose.</summary>
internal sealed class BrokenTarget(IScsiTarget inner, SessionBreakage breakage) : IScsiTarget
{
    private readonly List<ScsiNexus> _nexuses = [];

    public void AddNexus(ScsiNexus nexus)
    {
        _nexuses.Add(nexus);
        inner.AddNexus(nexus);
    }

    public void RemoveNexus(ScsiNexus nexus)
    {
        _nexuses.Remove(nexus);
        inner.RemoveNexus(nexus);
    }

    public ScsiPlan Plan(ScsiCommand command) => inner.Plan(command);

    public async ValueTask<bool> ExecuteAsync(ScsiCommand command)
    {
        bool isAnswered = await inner.ExecuteAsync(command);
        if (breakage == SessionBreakage.AbortedAnswered && command.IsAborted)
        {
            (command.IsAborted, command.Status) = (false, ScsiStatus.Good);
            return true;
        }

        bool isAttention = command.Status == ScsiStatus.CheckCondition && (command.Sense[2] & 0x0F) == 6;
        if (breakage == SessionBreakage.AttentionsSwallowed && isAttention) return await ExecuteAsync(command);
        if (breakage != SessionBreakage.ReservationsIgnored || command.Status != ScsiStatus.ReservationConflict) return isAnswered;
        if (command.Cdb[0] is not (0x8A or 0x88)) return isAnswered;
        return await ExecuteAsOtherAsync(command);
    }

    public ValueTask<TaskFunctionResponse> ManageAsync(ScsiNexus nexus, TaskFunction function, ulong lun, uint tag)
    {
        ValueTask<TaskFunctionResponse> managed = inner.ManageAsync(nexus, function, lun, tag);
        if (breakage != SessionBreakage.AbortAnsweredEarly || managed.IsCompleted) return managed;
        _ = managed.AsTask();
        return new ValueTask<TaskFunctionResponse>(TaskFunctionResponse.Complete);
    }

    /// <summary>As whoever is let in.</summary>
    private async ValueTask<bool> ExecuteAsOtherAsync(ScsiCommand command)
    {
        ScsiNexus own = command.Nexus;
        bool isAnswered = true;
        foreach (ScsiNexus other in _nexuses.ToArray())
        {
            if (other == own || command.IsAborted) continue;
            (command.Nexus, command.Status) = (other, ScsiStatus.Good);
            isAnswered = await inner.ExecuteAsync(command);
            command.Nexus = own;
            if (command.Status != ScsiStatus.ReservationConflict) return isAnswered;
        }

        return isAnswered;
    }
}
