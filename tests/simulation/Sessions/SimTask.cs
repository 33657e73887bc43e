using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>How a command ended for its initiator.</summary>
internal enum TaskEnd
{
    /// <summary>With a status.</summary>
    Answered,

    /// <summary>Task management ended it; it may have happened before.</summary>
    Aborted,

    /// <summary>Its connection or session ended; it may still happen until the target says that it cannot.</summary>
    Lost,
}

/// <summary>The end of a command.</summary>
internal sealed record TaskAnswer(TaskEnd End, ScsiStatus Status, byte[] DataIn, byte[] Sense)
{
    public bool IsGood => End == TaskEnd.Answered && Status == ScsiStatus.Good;

    /// <summary>Answered, and certainly nothing was changed.</summary>
    public bool IsRefused => End == TaskEnd.Answered && Status != ScsiStatus.Good;

    public int Key => Sense.Length > 2 ? Sense[2] & 0x0F : 0;

    public ushort Code => Sense.Length > 13 ? (ushort)(Sense[12] << 8 | Sense[13]) : (ushort)0;

    public bool IsAttention => Status == ScsiStatus.CheckCondition && Key == 6;

    public override string ToString() => End != TaskEnd.Answered ? End.ToString() : $"{Status} {Key:X2}/{Code:X4}";
}

/// <summary>One command of a simulated initiator, from its number to its end.</summary>
internal sealed class SimTask(uint tag, uint cmdSn, ulong lun, SimLink link, byte[]? dataOut, int expected)
{
    public uint Tag { get; } = tag;

    public uint CmdSn { get; } = cmdSn;

    public ulong Lun { get; } = lun;

    public SimLink Link { get; } = link;

    public byte[]? DataOut { get; } = dataOut;

    public int Expected { get; } = expected;

    public LoopEvent<TaskAnswer> Done { get; } = new();

    public bool IsFinished { get; private set; }

    /// <summary>Somebody else asked for its end: it may never be answered.</summary>
    public bool MayVanish { get; set; }

    /// <summary>Its Data-Out has a hole in the numbers: it must be refused.</summary>
    public bool IsSpoiled { get; set; }

    public MemoryStream DataIn { get; } = new();

    public uint DataInSn { get; set; }

    public int BurstBytes { get; set; }

    public uint R2TSn { get; set; }

    /// <summary>Where the next R2T has to begin.</summary>
    public int R2TOffset { get; set; }

    /// <summary>Bursts to send: the transfer tag and the range.</summary>
    public Queue<(uint TransferTag, int From, int To)> Bursts { get; } = new();

    public bool IsSending { get; set; }

    public void Finish(TaskAnswer answer)
    {
        if (IsFinished) return;
        IsFinished = true;
        Done.Set(answer);
    }
}
