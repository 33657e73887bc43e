using System.Globalization;

namespace BlockServer.Protocols.Iscsi;

/// <summary>How one key was taken.</summary>
public enum KeyVerdict
{
    /// <summary>There is an answer to send.</summary>
    Answered,

    /// <summary>Declared; nothing is sent back.</summary>
    Taken,

    /// <summary>Not a key of this table.</summary>
    Unknown,
}

/// <summary>
/// The operational keys of RFC 7143, section 13, with their rules: lists (the initiator's order decides), numbers (the
/// smaller or the larger), booleans (AND or OR) and declarations. Pure.
/// </summary>
public static class OperationalKeys
{
    private const string Reject = "Reject", Irrelevant = "Irrelevant", Yes = "Yes", No = "No";

    /// <summary>Takes one key. In <see cref="KeyVerdict.Answered"/> the text to send is in <paramref name="answer"/>.</summary>
    /// <param name="key">Name of the key.</param>
    /// <param name="value">What the initiator offers.</param>
    /// <param name="ours">Our side.</param>
    /// <param name="agreed">Takes what is agreed.</param>
    /// <param name="isDiscovery">Keys of a session with a target are irrelevant.</param>
    /// <param name="isLeading">First connection of its session: others may not change what the session has.</param>
    /// <param name="answer">The answer.</param>
    public static KeyVerdict Take(
        string key, string value, IscsiOptions ours, IscsiParameters agreed, bool isDiscovery, bool isLeading, out string answer)
    {
        answer = Reject;
        switch (key)
        {
            case "HeaderDigest":
                if (Digest(value, ours, out bool header, out answer)) agreed.HeaderDigest = header;
                return KeyVerdict.Answered;
            case "DataDigest":
                if (Digest(value, ours, out bool data, out answer)) agreed.DataDigest = data;
                return KeyVerdict.Answered;
            case "MaxRecvDataSegmentLength":
                if (!Number(value, 512, IscsiWire.LengthMax, out int length)) return KeyVerdict.Answered;
                agreed.InitiatorMaxRecvDataSegmentLength = length;
                return KeyVerdict.Taken;
            case "IFMarker" or "OFMarker":
                answer = No; // obsolete: Reject or No, never NotUnderstood
                return KeyVerdict.Answered;
            case "IFMarkInt" or "OFMarkInt":
                return KeyVerdict.Answered; // obsolete: Reject
        }

        KeyVerdict verdict = TakeOfSession(key, value, ours, isLeading && !isDiscovery ? agreed : new IscsiParameters(), ref answer);
        if (verdict != KeyVerdict.Answered) return verdict;
        if (!isLeading) answer = Reject;
        else if (isDiscovery && IsOfTarget(key)) answer = Irrelevant;
        return verdict;
    }

    private static bool IsOfTarget(string key) => key is not ("DefaultTime2Wait" or "DefaultTime2Retain" or "ErrorRecoveryLevel"
        or "iSCSIProtocolLevel");

    private static KeyVerdict TakeOfSession(string key, string value, IscsiOptions ours, IscsiParameters agreed, ref string answer)
    {
        int number;
        bool isYes;
        switch (key)
        {
            case "MaxConnections":
                if (!Number(value, 1, 65535, out number)) return KeyVerdict.Answered;
                agreed.MaxConnections = Math.Min(number, ours.MaxConnections);
                answer = Text(agreed.MaxConnections);
                return KeyVerdict.Answered;
            case "InitialR2T":
                if (!Boolean(value, out isYes)) return KeyVerdict.Answered;
                agreed.InitialR2T = isYes | ours.InitialR2T;
                answer = agreed.InitialR2T ? Yes : No;
                return KeyVerdict.Answered;
            case "ImmediateData":
                if (!Boolean(value, out isYes)) return KeyVerdict.Answered;
                agreed.ImmediateData = isYes & ours.ImmediateData;
                answer = agreed.ImmediateData ? Yes : No;
                return KeyVerdict.Answered;
            case "MaxBurstLength":
                if (!Number(value, 512, IscsiWire.LengthMax, out number)) return KeyVerdict.Answered;
                agreed.MaxBurstLength = Math.Min(number, ours.MaxBurstLength);
                answer = Text(agreed.MaxBurstLength);
                return KeyVerdict.Answered;
            case "FirstBurstLength":
                if (!Number(value, 512, IscsiWire.LengthMax, out number)) return KeyVerdict.Answered;
                agreed.FirstBurstLength = Math.Min(number, ours.FirstBurstLength);
                answer = Text(agreed.FirstBurstLength);
                return KeyVerdict.Answered;
            case "DefaultTime2Wait":
                if (!Number(value, 0, 3600, out number)) return KeyVerdict.Answered;
                agreed.DefaultTime2Wait = Math.Max(number, ours.DefaultTime2Wait);
                answer = Text(agreed.DefaultTime2Wait);
                return KeyVerdict.Answered;
            case "DefaultTime2Retain":
                if (!Number(value, 0, 3600, out number)) return KeyVerdict.Answered;
                agreed.DefaultTime2Retain = 0; // the smaller: nothing is kept at error recovery level 0
                answer = Text(agreed.DefaultTime2Retain);
                return KeyVerdict.Answered;
            case "MaxOutstandingR2T":
                if (!Number(value, 1, 65535, out number)) return KeyVerdict.Answered;
                agreed.MaxOutstandingR2T = Math.Min(number, ours.MaxOutstandingR2T);
                answer = Text(agreed.MaxOutstandingR2T);
                return KeyVerdict.Answered;
            case "DataPDUInOrder" or "DataSequenceInOrder":
                if (Boolean(value, out _)) answer = Yes; // OR, and our side is Yes
                return KeyVerdict.Answered;
            case "ErrorRecoveryLevel":
                if (Number(value, 0, 2, out _)) answer = "0";
                return KeyVerdict.Answered;
            case "TaskReporting":
                if (value.Split(',').Contains("RFC3720")) answer = "RFC3720";
                return KeyVerdict.Answered;
            case "iSCSIProtocolLevel":
                if (Number(value, 0, 31, out number)) answer = Text(Math.Min(number, 1));
                return KeyVerdict.Answered;
            default:
                return KeyVerdict.Unknown;
        }
    }

    /// <summary>A number as RFC 7143, 6.1 writes it: decimal or 0x hexadecimal.</summary>
    public static bool Number(string text, int min, int max, out int number)
    {
        bool isHex = text.StartsWith("0x", StringComparison.OrdinalIgnoreCase);
        ReadOnlySpan<char> digits = isHex ? text.AsSpan(2) : text;
        return int.TryParse(
                digits, isHex ? NumberStyles.AllowHexSpecifier : NumberStyles.None, CultureInfo.InvariantCulture, out number)
            && number >= min && number <= max;
    }

    private static bool Boolean(string text, out bool isYes)
    {
        isYes = text == Yes;
        return isYes || text == No;
    }

    private static bool Digest(string list, IscsiOptions ours, out bool isOn, out string answer)
    {
        isOn = false;
        answer = Reject;
        foreach (string wish in list.Split(','))
        {
            isOn = wish == "CRC32C" && ours.AllowDigests;
            if (!isOn && wish != "None") continue;
            answer = wish;
            return true;
        }

        return false;
    }

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);
}
